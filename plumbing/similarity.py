"""How alike two texts are, from 0 to 1, by libraries that need not be there until one is asked for.

Each function takes its own name and gives a function (text, reference) -> similarity. Raises:
ValueError where its library is missing, with the command that installs it.
"""

import importlib


def fuzzy(_):
    ratio = optional("rapidfuzz.fuzz", "rapidfuzz").WRatio
    return lambda text, reference: ratio(text, reference) / 100


def bleu(_):
    measure = optional("sacrebleu", "sacrebleu").sentence_bleu
    return lambda text, reference: min(1.0, measure(text, [reference]).score / 100)


def gleu(_):
    measure = optional("nltk.translate.gleu_score", "nltk").sentence_gleu
    return lambda text, reference: measure([reference.split()], text.split())


def meteor(_):
    measure = optional("nltk.translate.meteor_score", "nltk").meteor_score
    try:
        measure([["a"]], ["b"])
    except LookupError:
        raise ValueError("meteor reads WordNet: python -m nltk.downloader wordnet") from None
    return lambda text, reference: measure([reference.split()], text.split())


def rouge(name):
    name = name.replace("_l", "L").replace("_", "")
    scorer = optional("rouge_score.rouge_scorer", "rouge-score").RougeScorer([name])
    return lambda text, reference: scorer.score(reference, text)[name].fmeasure


def optional(module, package):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"it takes {package}: pip install {package}") from None


SIMILARITIES = {"fuzzy_match": fuzzy, "bleu": bleu, "gleu": gleu, "meteor": meteor,
                **{f"rouge_{n}": rouge for n in [1, 2, 3, 4, 5, "l"]}}
