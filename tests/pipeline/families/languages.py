"""What the tests' texts are made of: sentences of fourteen scripts, and a few hundred texts made of their words.

SENTENCES["greek"]    ("Το τρένο από την Αθήνα φεύγει στις επτά το πρωί.", …)
texts()               ["", "a", "😀", " ", "\u200b", …, "поезд из Киева…" (5,000 characters)]
"""

import random
from collections.abc import Mapping, Sequence

SENTENCES: Mapping[str, Sequence[str]] = {
    "english": (
        "The train from Boston leaves at seven in the morning, and nobody reads the newspaper any more.",
        "Anna Smith works for the city library; she has lent 12,500 books since 2019.",
        "I loved this film: the music is wonderful, the ending isn't.",
        "Translate English to German: where is the nearest station? Answer the question in one word.",
    ),
    "german": (
        "Der Zug aus München fährt um sieben Uhr früh, und niemand liest mehr die Zeitung.",
        "Die Straße nach Köln ist gesperrt; größere Umwege kosten Äpfel, Öl und Übung.",
        "Wo ist der nächste Bahnhof? Das weiß Frau Müller von der Stadtbücherei.",
    ),
    "french": (
        "Le train de Marseille part à sept heures du matin, et personne ne lit plus le journal.",
        "L'été dernier, Zoë a mangé des crêpes où naît la forêt ; ça coûtait 3,50 €.",
        "Où est la gare la plus proche ? C'est là-bas, derrière l'hôtel « Cœur d'Île ».",
    ),
    "russian": (
        "Поезд из Киева отправляется в семь часов утра, и никто больше не читает газету.",
        "Где находится ближайший вокзал? Это знает Анна из городской библиотеки.",
        "Объём продаж вырос на 15 %, съёмка ещё идёт.",
    ),
    "greek": (
        "Το τρένο από την Αθήνα φεύγει στις επτά το πρωί και κανείς δεν διαβάζει εφημερίδα.",
        "Πού είναι ο κοντινότερος σταθμός; Το ξέρει η Ελένη από τη βιβλιοθήκη.",
    ),
    "arabic": (
        "يغادر القطار من القاهرة في الساعة السابعة صباحا ولا أحد يقرأ الجريدة.",
        "أين أقرب محطة؟ تعرف ذلك ليلى من مكتبة المدينة، رقم ١٢٣.",
        "كَتَبَ الوَلَدُ دَرْسَهُ.",
    ),
    "hebrew": (
        "הרכבת מירושלים יוצאת בשבע בבוקר ואיש אינו קורא עיתון.",
        "איפה התחנה הקרובה? רחל מספריית העיר יודעת, בקומה 3.",
        "שָׁלוֹם לְכֻלָּם.",
    ),
    "hindi": (
        "दिल्ली से रेलगाड़ी सुबह सात बजे चलती है और कोई अख़बार नहीं पढ़ता।",
        "सबसे नज़दीकी स्टेशन कहाँ है? यह पुस्तकालय की मीरा जानती हैं।",
    ),
    "thai": (
        "รถไฟจากกรุงเทพออกเวลาเจ็ดโมงเช้าและไม่มีใครอ่านหนังสือพิมพ์",
        "สถานีที่ใกล้ที่สุดอยู่ที่ไหน คุณแอนนาที่ห้องสมุดรู้",
    ),
    "chinese": (
        "从北京开出的火车早上七点出发，再也没有人看报纸了。",
        "最近的车站在哪里？市图书馆的王小明知道。",
    ),
    "japanese": (
        "東京からの電車は朝七時に出発し、もう誰も新聞を読みません。",
        "一番近い駅はどこですか。図書館のアンナさんが知っています。",
    ),
    "korean": (
        "서울에서 오는 기차는 아침 일곱 시에 떠나고 아무도 신문을 읽지 않는다.",
        "가장 가까운 역이 어디입니까? 도서관의 민수 씨가 압니다.",
    ),
    "accents": (
        "Cafe\u0301 re\u0301sume\u0301 nai\u0308ve A\u030angstro\u0308m, Vie\u0323\u0302t Nam, n\u0303andu\u0301.",
        "Z\u0351\u0343a\u0309\u0315l\u0322g\u0353o\u0300 e\u0301\u0323.",
    ),
    "emoji": (
        "😀 😂🎉 👍🏽 👩🏿‍🔬 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ ☕️",
        "great 👍🏻 so gut 🥨🍺 merci 🙏🏾 спасибо 🌻",
    ),
}

# No word has a blank between these.
UNSPACED = ("thai", "chinese", "japanese")

LONGEST = 5_000

# Each has broken a tokenizer, an offset or a display somewhere.
ODD = (
    "",
    "a",
    "é",
    "e\u0301",
    "字",
    "א",
    "😀",
    "👩🏿‍🔬",
    "\u0301",
    "\u200b",
    "\u200d\u200c\ufeff",
    "\x00",
    "\ufffd",
    " ",
    "   \t\n\r\n ",
    "\u00a0\u2003\u3000",
    "\n\n\n",
    "a\x00b\x00c",
    "one\ttwo\nthree\r\nfour\u2028five\u0085six",
    "soft\u00adhyphen zero\u200bwidth joined\u2060words \ufeffmark",
    "😀😂🎉👍🏽👩🏿‍🔬👨‍👩‍👧‍👦🏳️‍🌈🇩🇪❤️1️⃣",
    "😀" * 300,
    "\u0301\u0323" * 40,
    "a" + "\u0301\u0308\u0323" * 60,
    "שלום 123 עולם 4.5% (abc) שָׁלוֹם",
    "السعر ١٢٣ ريال و 456 USD في 2024/05/06",
    "\u202eright to left override\u202c back",
    "ﬁﬂ ½ ² ｆｕｌｌ　ｗｉｄｔｈ ㍿ Ⅷ ﷺ ǆ ẞ İ ı ς",
    "x" * 1_200,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 20,
    "从北京开出的火车早上七点出发" * 40,
    "https://example.org/a/very/long?path=with&many=parts#and-a-fragment" * 6,
    "[CLS] [SEP] [MASK] <s> </s> <pad> <unk> <|endoftext|> <extra_id_0> __de__ >>fra<<",
    "a.b,c;d:e!f?g-h_i/j\\k|l(m)n[o]p{q}r<s>t'u\"v`w~x@y#z$1%2^3&4*5+6=7",
    "\U0001f9d1\U0001f3fb\u200d\U0001f91d\u200d\U0001f9d1\U0001f3ff \U00020000\U0002a6d6 \U0010ffff",
    "▁metaspace Ġbyte ##wordpiece",
)


def words_of(script: str) -> list[str]:
    """The words of a script's sentences; where no blanks are written, runs of two characters."""
    if script in UNSPACED:
        return [line[at : at + 2] for line in SENTENCES[script] for at in range(0, len(line), 2)]
    return [word for line in SENTENCES[script] for word in line.split(" ")]


def running_text(choice: random.Random, scripts: Sequence[str], length: int) -> str:
    """Exactly `length` characters: words of `scripts`, a full stop now and then."""
    pieces: list[str] = []
    written = 0
    while written < length:
        script = choice.choice(scripts)
        blank = "" if script in UNSPACED else choice.choice((" ", " ", " ", " ", ". ", "\n"))
        pieces.append(choice.choice(words_of(script)) + blank)
        written += len(pieces[-1])
    return "".join(pieces)[:length]


def any_characters(choice: random.Random, length: int) -> str:
    """`length` code points from all over Unicode, surrogates apart (no UTF-8 has them)."""
    planes = ((0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x1F300, 0x1FAFF))
    return "".join(chr(choice.randrange(*choice.choice(planes))) for _ in range(length))


def texts(seed: int = 11) -> list[str]:
    """Over 220 texts of 0 to 5,000 characters: odd ones, each script, mixtures, any code points. The same each time."""
    choice = random.Random(seed)
    scripts = list(SENTENCES)
    written = list(ODD)
    for script in scripts:
        written += SENTENCES[script]
        written += [running_text(choice, [script], choice.randrange(1, 400)) for _ in range(6)]
        written.append(running_text(choice, [script], choice.randrange(400, 2_000)))
    written += [running_text(choice, scripts, choice.randrange(2, 600)) for _ in range(40)]
    written += [any_characters(choice, choice.randrange(1, 200)) for _ in range(12)]
    written += [
        running_text(choice, [script], LONGEST) for script in ("english", "arabic", "hindi", "chinese", "emoji")
    ]
    choice.shuffle(written)
    return written
