"""Writes data/redaction/sample.jsonl: the labelled texts on which redaction is measured.

Half the lines are written by hand (data/redaction/by_hand.txt, with what must go marked), half are made here, seeded: people's
numbers with check digits computed here, in sentences of several languages, beside figures, ids and hashes that are nobody's.
Nothing here knows the detectors: check digits are found by trying, from the rule as its issuer states it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "data" / "redaction"
MARKED = re.compile(r"<<([A-Z_]+)\|(.*?)>>", re.DOTALL)
Make = Callable[[random.Random], str]


def digits(rng: random.Random, count: int, first: str = string.digits) -> str:
    return rng.choice(first) + "".join(rng.choices(string.digits, k=count - 1))


def signs(rng: random.Random, count: int, of: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(of, k=count))


# --- what must go -----------------------------------------------------------------------------------------------------


def email(rng: random.Random) -> str:
    first, last = rng.choice("ana bo chen dora emil farid gus hana ivo jin".split()), rng.choice("lang ruiz okoro weber tan silva".split())
    local = rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}{rng.randrange(99)}", f"{first}+{last}"))
    host = rng.choice(("mail", "post", "team-a", "kontor"))
    return f"{local}@{host}.{rng.choice(('example.com', 'de', 'co.uk', 'fr', 'io', 'example.org'))}"


def phone(rng: random.Random) -> str:
    two = lambda: digits(rng, 2)  # noqa: E731
    return rng.choice(
        (
            f"+1 {digits(rng, 3, '23456789')}-{digits(rng, 3, '23456789')}-{digits(rng, 4)}",
            f"({digits(rng, 3, '23456789')}) {digits(rng, 3, '23456789')}-{digits(rng, 4)}",
            f"+44 20 7946 {digits(rng, 4)}",
            f"+49 {digits(rng, 3, '23456789')} {digits(rng, 7)}",
            f"+41 {rng.choice(('44', '79', '31'))} {digits(rng, 3)} {two()} {two()}",
            f"0{rng.choice('123456')} {two()} {two()} {two()} {two()}",
            f"+33{rng.choice('1267')}{digits(rng, 8)}",
            f"+91 {digits(rng, 5, '6789')} {digits(rng, 5)}",
            f"+81-3-{digits(rng, 4)}-{digits(rng, 4)}",
        )
    )


def iban(rng: random.Random) -> str:
    country, body = rng.choice(
        (("DE", digits(rng, 18)), ("CH", digits(rng, 17)), ("NL", f"ABNA{digits(rng, 10)}"), ("GB", f"NWBK{digits(rng, 14)}"),
         ("FR", f"{digits(rng, 20)}{digits(rng, 3)}"), ("ES", digits(rng, 20)), ("PL", digits(rng, 24)))
    )  # fmt: skip
    as_number = lambda text: int("".join(str(string.digits.find(c)) if c.isdigit() else str(ord(c) - 55) for c in text))  # noqa: E731
    whole = next(f"{country}{key:02d}{body}" for key in range(2, 99) if as_number(f"{body}{country}{key:02d}") % 97 == 1)
    return rng.choice((whole, " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))))


def doubled(digit: str) -> int:
    return sum(map(int, str(2 * int(digit))))


def card(rng: random.Random) -> str:
    prefix, length = rng.choice((("4", 16), ("51", 16), ("54", 16), ("37", 15), ("6011", 16), ("2221", 16)))
    body = prefix + digits(rng, length - len(prefix) - 1)
    odd_first = length % 2 == 0
    total = sum(doubled(d) if (place % 2 == 0) == odd_first else int(d) for place, d in enumerate(body))
    whole = body + str(next(key for key in range(10) if (total + key) % 10 == 0))
    if length == 15:
        return rng.choice((whole, f"{whole[:4]} {whole[4:10]} {whole[10:]}"))
    return rng.choice(("", " ", "-")).join((whole[:4], whole[4:8], whole[8:12], whole[12:]))


def ssn(rng: random.Random) -> str:
    return f"{rng.randrange(100, 600)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}"


def nino(rng: random.Random) -> str:
    letters = signs(rng, 1, "ABCEHJLMPRSTWXY") + signs(rng, 1, "AEHLMPRSWXYZ")
    return " ".join((letters, digits(rng, 2), digits(rng, 2), digits(rng, 2), signs(rng, 1, "ABCD")))


def steuer_id(rng: random.Random) -> str:
    while True:
        nine = rng.sample(string.digits, 9)
        body = [*nine, rng.choice(nine)]
        rng.shuffle(body)
        if body[0] != "0":
            break
    rest = 10
    for digit in body:
        total = (rest + int(digit)) % 10
        rest = (2 * (10 if total == 0 else total)) % 11
    key = 11 - rest
    whole = "".join(body) + str(0 if key == 10 else key)
    return rng.choice((whole, f"{whole[:2]} {whole[2:5]} {whole[5:8]} {whole[8:]}"))


def nir(rng: random.Random) -> str:
    parts = [rng.choice("12"), digits(rng, 2), f"{rng.randrange(1, 13):02d}", f"{rng.randrange(1, 96):02d}", digits(rng, 3), digits(rng, 3)]
    if rng.random() < 0.2:
        parts[3] = rng.choice(("2A", "2B"))
    number = int("".join(parts).replace("2A", "19") if parts[3] == "2A" else "".join(parts).replace("2B", "18"))
    return rng.choice(("", " ")).join([*parts, f"{97 - number % 97:02d}"])


def ahv(rng: random.Random) -> str:
    body = "756" + digits(rng, 9)
    key = next(k for k in range(10) if (sum(int(d) for d in body[::2]) + 3 * sum(int(d) for d in body[1::2]) + k) % 10 == 0)
    return f"{body[:3]}.{body[3:7]}.{body[7:11]}.{body[11:]}{key}"


def key(rng: random.Random) -> str:
    return rng.choice(
        (
            f"sk-proj-{signs(rng, 14)}00EXAMPLE{signs(rng, 14)}",
            f"ghp_EXAMPLE{signs(rng, 29)}",
            f"AKIA{signs(rng, 9, string.ascii_uppercase + '234567')}EXAMPLE",
            f"xoxb-{digits(rng, 10)}-EXAMPLE{signs(rng, 12)}",
            f"AIzaSyEXAMPLE{signs(rng, 26)}",
            f"eyJ{signs(rng, 20)}.eyJ{signs(rng, 30)}.{signs(rng, 43)}",
        )
    )


MUST_GO: dict[str, Make] = {
    "EMAIL": email, "PHONE": phone, "IBAN": iban, "CARD": card, "SSN": ssn, "NINO": nino, "STEUER_ID": steuer_id, "NIR": nir,
    "AHV": ahv, "KEY": key, "PASSWORD": lambda rng: f"{signs(rng, 5)}{rng.choice('!#$%&?')}{digits(rng, 3)}",
}  # fmt: skip
SENTENCES = (
    "On {date} the clerk noted {it} next to revenue of {figure}.",
    "Bitte {it} in Zeile {small} eintragen, Umsatz {figure}.",
    "Le dossier mentionne {it} et un total de {figure}.",
    "El expediente {uuid} contiene {it}.",
    '{{"id": "{uuid}", "value": "{it}", "amount": {small}}}',
    "{date} INFO agent returned {it} after {small} ms",
    "| {date} | {it} | {figure} |",
    "记录 {it} ,收入 {figure}",
    "{it}\n{figure}\n{small}",
)
PASSWORD_SENTENCES = (
    "db: password={it} host=db{small}",
    '{{"user": "u{small}", "password": "{it}"}}',
    "amqp://svc:{it}@mq.example.com/{small}",
)


def with_one(rng: random.Random, kind: str) -> str:
    sentence = rng.choice(PASSWORD_SENTENCES if kind == "PASSWORD" else SENTENCES)
    return sentence.format(it=f"<<{kind}|{MUST_GO[kind](rng)}>>", **around(rng))


# --- what must stay ---------------------------------------------------------------------------------------------------


def around(rng: random.Random) -> dict[str, str]:
    amount = f"{rng.randrange(10**6, 10**12):,}"
    figures = (f"${amount}", amount.replace(",", ".") + " €", f"{rng.uniform(1, 10**6):,.1f} million", amount.replace(",", " ") + " CHF")
    return {
        "date": f"20{rng.randrange(10, 27)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}",
        "figure": rng.choice(figures),
        "small": str(rng.randrange(1, 99999)),
        "uuid": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    }


def table(rng: random.Random) -> str:
    gap = rng.choice((" ", "  ", "\t", " | "))
    years = gap.join(str(year) for year in range(2020, 2020 + 4))
    rows = [gap.join(f"{rng.randrange(1000, 10 ** rng.randrange(4, 8)):,}" for _ in range(4)) for _ in range(4)]
    return "\n".join(["(in thousands)", years, *rows])


def bare_table(rng: random.Random) -> str:
    return "\n".join(" ".join(digits(rng, 4, "123456789") for _ in range(rng.randrange(5, 8))) for _ in range(4))


def registry_numbers(rng: random.Random) -> str:
    accession = f"{digits(rng, 10, '0')}-{rng.randrange(10, 27)}-{digits(rng, 6)}"
    return f"accession {accession}, file no. 001-{digits(rng, 5)}, EIN {digits(rng, 2)}-{digits(rng, 7)}"


def hashes(rng: random.Random) -> str:
    return f"{around(rng)['uuid']} {signs(rng, 40, '0123456789abcdef')} {signs(rng, 64, '0123456789abcdef')}"


def moments(rng: random.Random) -> str:
    clock = f"T{rng.randrange(24):02d}:{rng.randrange(60):02d}:00.{digits(rng, 6)}+0{rng.randrange(3)}:00"
    return f"{around(rng)['date']}{clock} step={digits(rng, 4)} ns={digits(rng, 18, '1')}"


def floats(rng: random.Random) -> str:
    return f"x = [{', '.join(f'{rng.uniform(-9, 9):.15f}' for _ in range(5))}]"


def balance(rng: random.Random) -> str:
    return f"Bilanzsumme {around(rng)['figure']}, Vorjahr {around(rng)['figure']}; {rng.randrange(1, 40)} Werke"


def securities(rng: random.Random) -> str:
    isbn = f"978-{digits(rng, 1)}-{digits(rng, 3)}-{digits(rng, 5)}-{digits(rng, 1)}"
    return f"ISBN {isbn}, CUSIP {digits(rng, 9)}, ISIN US{digits(rng, 10)}"


def address_and_version(rng: random.Random) -> str:
    address = ".".join(str(rng.randrange(256)) for _ in range(4))
    return f"{address}:{digits(rng, 4)} v{rng.randrange(9)}.{rng.randrange(30)}.{rng.randrange(30)}"


def orders(rng: random.Random) -> str:
    return f"order {digits(rng, 16, '1789')} shipped, ref {digits(rng, 12, '123456789')}, lot {digits(rng, 8)}"


def change(rng: random.Random) -> str:
    shares = f"({rng.randrange(100, 999)} {rng.randrange(100, 999)} shares)"
    return f"change of +{rng.uniform(1, 99):.2f}% to {around(rng)['figure']} {shares}"


MUST_STAY: tuple[Make, ...] = (
    table, bare_table, registry_numbers, hashes, moments, floats, balance, securities, address_and_version, orders, change,
)  # fmt: skip


def labelled(marked: str, source: str) -> dict[str, Any]:
    text, spans, done = "", list[dict[str, Any]](), 0
    for found in MARKED.finditer(marked):
        text += marked[done : found.start()]
        spans.append({"kind": found[1], "start": len(text), "end": len(text) + len(found[2])})
        text, done = text + found[2], found.end()
    return {"text": text + marked[done:], "spans": spans, "source": source}


def sample(seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    lines = (FOLDER / "by_hand.txt").read_text(encoding="utf-8").splitlines()
    texts = [labelled(line.replace("\\n", "\n"), "hand") for line in lines if line and not line.startswith("#")]
    texts += [labelled(with_one(rng, kind), "made") for kind in MUST_GO for _ in range(9)]
    return texts + [labelled(make(rng), "made") for make in MUST_STAY for _ in range(9)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=5)
    texts = sample(options.parse_args().seed)
    lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in texts]
    (FOLDER / "sample.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{len(texts)} texts, {sum(not text['spans'] for text in texts)} with nothing to remove")


if __name__ == "__main__":
    main()
