"""Languages as translation models call them, and as a splitter of sentences does.

codes("nllb", ["</s>", "eng_Latn", "deu_Latn"])    -> {"eng_Latn": "eng_Latn", "deu_Latn": "deu_Latn"}
codes("marian", [">>deu<<", "▁a"])                 -> {"deu": ">>deu<<"}
splitter_code("deu_Latn"), splitter_code("German") -> "de", "de"
"""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

T5_NAMES: Mapping[str, str] = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
"""What T5 was trained to translate, in the words of its prefix."""

WITHOUT_BLANKS = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "zh", "yue", "wuu"})
"""Languages that put no blank between sentences or words."""

_TOKENS: Mapping[str, re.Pattern[str]] = {
    "marian": re.compile(r">>(.+)<<"),
    "m2m100": re.compile(r"__([a-z]{2,3})__"),
    "nllb": re.compile(r"([a-z]{3}_[A-Z][a-z]{3})"),
    "mbart": re.compile(r"([a-z]{2}_[A-Z]{2})"),
}

# ISO 639-3 (and 639-2/B) to the code of the Wikipedia in that language, where it is a shorter one.
_SHORT: Mapping[str, str] = dict(
    re.findall(
        "([a-z]+):([a-z]+)",
        "afr:af aka:ak amh:am ara:ar arb:ar arg:an asm:as aze:az azj:az bel:be ben:bn bod:bo bos:bs bre:br bul:bg "
        "cat:ca ces:cs cmn:zh cym:cy dan:da deu:de dzo:dz ell:el eng:en epo:eo est:et eus:eu ewe:ee fao:fo fas:fa "
        "fin:fi fra:fr fry:fy gla:gd gle:ga glg:gl grn:gn guj:gu hat:ht hau:ha heb:he hin:hi hrv:hr hun:hu hye:hy "
        "ibo:ig ilo:ilo ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khm:km kin:rw kir:ky kor:ko kur:ku "
        "lao:lo lat:la lav:lv lin:ln lit:lt ltz:lb lug:lg lvs:lv mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn msa:ms "
        "mya:my nep:ne nld:nl nno:nn nob:no nor:no npi:ne oci:oc ory:or pan:pa pbt:ps pes:fa plt:mg pol:pl por:pt "
        "prs:fa pus:ps ron:ro run:rn rus:ru san:sa sin:si slk:sk slv:sl sna:sn snd:sd som:so sot:st spa:es sqi:sq "
        "srp:sr sun:su swa:sw swe:sv swh:sw tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti ton:to tsn:tn tuk:tk "
        "tur:tr uig:ug ukr:uk urd:ur uzb:uz uzn:uz vie:vi wol:wo xho:xh ydd:yi yid:yi yor:yo zho:zh zsm:ms zul:zu",
    )
)
_NAMES: Mapping[str, str] = {name.casefold(): code for code, name in T5_NAMES.items()}


def codes(kind: str, tokens: Iterable[str]) -> dict[str, str]:
    """Language code -> its token, of those among the tokens of a vocabulary, sorted; `kind` is how they are written."""
    pattern = _TOKENS[kind]
    found = {match[1]: token for token in tokens if (match := pattern.fullmatch(token)) is not None}
    return dict(sorted(found.items()))


def unknown(option: str, value: str, known: Collection[str], most: int = 60) -> str:
    """What to say of a language that a model does not know."""
    near = get_close_matches(value, known, n=1, cutoff=0.5) or sorted(code for code in known if code[:2] == value[:2])
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return f"{option}: {value!r} is no language of the model{hint} known: {', '.join(list(known)[:most])}{rest}"


def t5_name(language: str) -> str | None:
    """What T5 calls a language, by its code or name; None where it was not trained for it."""
    return T5_NAMES.get(_NAMES.get(language.casefold(), language.casefold()))


def splitter_code(language: str | None) -> str | None:
    """The code that a splitter of sentences knows a language by: "deu_Latn", "de_DE", "deu" and "German" are "de".

    None where nothing is known: no language, or several ("mul").
    """
    if language is None or language in ("mul", "und", ""):
        return None
    first = re.split("[_-]", language)[0].casefold()
    return _NAMES.get(language.casefold()) or _SHORT.get(first, first)
