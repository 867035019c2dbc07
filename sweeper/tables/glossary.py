"""What the words on a report mean, a sentence each, for who reads of backdoors the first time."""

from __future__ import annotations

from collections.abc import Collection

from sweeper.tables.layout import head

MEASURES = {
    "acc": "accuracy: the share of clean test samples that the model gets right. High is good.",
    "asr": "attack success rate: the share of test samples with the trigger for which the model "
    "answers what the attacker wants. Low is good.",
    "acc_loss": "how many points of ACC the defense costs: ACC without a defense less ACC with it.",
    "ra": "robust accuracy: the share of test samples with the trigger that the model gets right "
    "all the same. High is good.",
    "der": "defense effectiveness rating: half of one, plus half of what ASR fell, less half of "
    "what ACC fell. 50 % is no effect, 100 % the best there is.",
    "tpr": "true positive rate: the share of the poisoned samples that a detector finds.",
    "fpr": "false positive rate: the share of the clean samples that a detector flags by mistake.",
    "auroc": "how well a detector's scores tell poisoned samples from clean ones: 50 % is "
    "guessing, 100 % is without a mistake.",
}
"""Measure of figures -> what it is."""
WORDS = {
    "victim": "the model that the attack left, with its backdoor; each defense starts there.",
    "trigger": "what the attacker adds to a sample so that the model gives the attacker's answer.",
    "No defense": "the victim as it is: what the defenses are compared with. It competes in "
    "nothing.",
    "No attack": "the model trained on clean samples alone. It counts in no mean and no rank.",
    "poison rate": "the share of the training samples that the attacker changed.",
    "target": "the class that the attacker wants samples with the trigger to get.",
    "clean budget": "how many clean samples a defense is given: a number, or a share of the "
    "training set.",
    "seed": "one repetition of an experiment with random numbers of its own.",
    "cell": "one experiment: an attack, a defense, a data set, a model, a poison rate and a seed.",
    "oracle": "a defense that is told what no defender knows, for comparison only.",
    "95 % interval": "where the true mean lies, at a confidence of 95 %.",
}
"""Word -> what it is."""


def sentences(measures: Collection[str], score: str = "") -> dict[str, str]:
    """Return what the words on a page mean, the measures it shows first.

    Args:
        measures: Which of `MEASURES` it shows.
        score: What ACC measures, where it is not accuracy.
    """
    told = {head(name, score): text for name, text in MEASURES.items() if name in measures}
    if score and "acc" in measures:
        told[score] = f"the score of this task, {score}, on clean test samples. High is good."
    return {name: text.replace("ACC", score or "ACC") for name, text in told.items()} | WORDS
