"""Read the number that a text begins with: "$1,234.50 in all" is 1234.5, "3 or 4" is none."""
# Every repetition is bounded, or of a class its successor excludes: reading takes linear time.

import re
from decimal import Decimal
from fractions import Fraction

OPENING = re.compile(r"(?:<<[^<>\n]{0,80}>>|\\(?:text|textbf|mathbf|mathrm)\{|\n\s{0,9}[-•]\s"
                     r"|[\s*_<>(\[{\"'“”‘’`$£€₹~≈:\\]"
                     r"|(?:therefore|thus|then|now|about|approximately|exactly|only|just)\b){0,30}",
                     re.I)
CLAUSE_END = re.compile(r"\n|;|\.(?=\s|$)|,(?=\s)(?!\s{0,3}[-$0-9])|\s\(|\s(?:when|where|if)\b")
EQUALS = re.compile(r"(?<![<>!=])=(?!=)")
NUMBER = re.compile(r"""
    (?P<sign>[-−+]?) \s? [$£€₹]? \s?
    (?P<digits>[0-9]{1,3}(?:,[0-9]{3}){1,12}(?![0-9]) | [0-9]{1,40}(?![0-9]) | (?=\.[0-9]))
    (?P<decimals>(?:\.[0-9]{1,40}(?![0-9]))?)
    (?P<exponent>(?:e[-+]?[0-9]{1,2}(?![0-9]))?)
    (?:\s?/\s?(?P<over>[0-9]{1,40})(?!\.?[0-9]))?""", re.X | re.I)
# after a number: another one, or an operation that nobody has carried out
MORE = re.compile(r"""
    \s*%?\s*(?:[-−–—+*/x×÷·^:,.&]|e[-+]?|(?:and|to|plus|minus|times)\b)?\s*\\?[$£€₹]?[0-9]
    | (?:\s{1,3}[a-z%]{1,20}){0,3}\s{1,3}(?:and|plus|to)\s{1,3}[$£€₹]?[0-9]
    | [²³½¼¾] | \s?(?:\^|\\(?:times|cdot|sqrt|d?frac|pi)|√|π) | [xyz]\b
    | \s(?:and\sa\shalf|hundred|thousand|million|billion|dozen|squared|cubed)\b""", re.X | re.I)
OR_ANOTHER = re.compile(r"[^\w\n]{0,5}\bor\b[^\n.;]{0,40}[0-9]", re.I)
SPAN = 500  # characters looked at


def read_number(text):
    """The one number that `text` begins with, normalised: "$1,234.50 in all" -> "1234.5", "6/8" ->
    "3/4", "5 - 10 = -5" -> "-5"; None for no number, several, or more than 40 digits."""
    text = re.sub(r"\{,\}|\\,", ",", text[:SPAN])  # LaTeX's, and its fractions
    text = re.sub(r"(?<![0-9])\\?[dt]?frac\{([0-9]{1,40})\}\{([0-9]{1,40})\}", r"\1/\2", text)
    text = OPENING.sub("", text, count=1)
    clause = CLAUSE_END.split(text, maxsplit=1)[0]
    if (sum(re.search("[0-9]", part) is not None for part in clause.split(" or ")) > 1
            or OR_ANOTHER.match(text, len(clause))):
        return None
    *left, right = EQUALS.split(clause)
    clause = OPENING.sub("", right, count=1) if left else clause
    match = NUMBER.match(clause)
    if match is None or MORE.match(clause, match.end()):
        return None
    value = Decimal((match["digits"].replace(",", "") or "0") + match["decimals"]
                    + match["exponent"])
    value = value.copy_negate() if match["sign"] in ("-", "−") else value  # minus would round
    if value.adjusted() > 39:
        return None
    if match["over"]:
        return str(Fraction(value) / int(match["over"])) if int(match["over"]) else None
    written = f"{value:f}"
    written = written.rstrip("0").rstrip(".") if "." in written else written
    return "0" if written == "-0" else written
