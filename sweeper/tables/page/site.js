"use strict";
const choice = document.getElementById("choice");
const boards = [...document.querySelectorAll("section.choice")];

/** Show one leaderboard; its name in the address makes a link to it. */
function show(id) {
  for (const board of boards) board.hidden = board.id !== id;
  choice.value = id;
}

/** The leaderboard that the address names, else the first. */
function named() {
  const id = decodeURIComponent(location.hash.slice(1));
  return (boards.find((board) => board.id === id) || boards[0]).id;
}

if (boards.length > 1) {
  document.getElementById("controls").hidden = false;
  choice.addEventListener("change", () => {
    show(choice.value);
    history.replaceState(null, "", `#${choice.value}`);
  });
  addEventListener("hashchange", () => {
    if (boards.some((board) => `#${board.id}` === location.hash)) show(named());
  });
  show(named());
}
