"""Looks into models that a table cannot give: pictures with numbers; victims in and out."""
