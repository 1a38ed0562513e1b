"""The running example's world: generated company filings and the questions about them. Pure and seeded: same seed, same world.

Every company has four quarterly filings and an annual one. A question is easy (the company's only annual filing),
medium (the right quarter among several) or hard (two look-ups, or a ratio of two figures).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from agent_rft.contracts.messages import ToolSpec
from agent_rft.contracts.rows import Expected, Row

FIRST_WORDS = (
    "Amber Anchor Aspen Atlas Beacon Birch Blue Bright Cedar Clear Cobalt Copper Coral Crest Crown Crystal "
    "Delta Eagle Echo Ember Falcon Forest Frost Garnet Golden Granite Green Harvest Hawk Hazel Henderson Heron "
    "High Indigo Iron Ivory Jade Juniper Lake Laurel Lunar Maple Marble Mesa Midland Noble North Oak "
    "Onyx Opal Orchid Pacific Pearl Pine Pioneer Polar Quartz Raven River Ruby Sable Silver Solar Summit"
).split()
SECOND_WORDS = (
    "Airlines Analytics Appliances Bakeries Bank Biotech Brands Brewing Cables Capital Carriers Castings Chemicals "
    "Circuits Clinics Coatings Devices Diagnostics Dynamics Electric Energy Engines Fabrics Farms Fibers Filters "
    "Foods Freight Furniture Gases Gear Glass Grocers Hardware Holdings Hotels Imaging Industries Instruments "
    "Insurance Labs Leasing Lighting Logistics Lumber Machines Marine Materials Media Metals Mills Mining Motors "
    "Networks Optics Packaging Paper Pharma Plastics Power Printing Railways Robotics Systems"
).split()

QUARTERS = ((3, 2024), (1, 2025), (2, 2025), (3, 2025))
FISCAL_YEAR = 2024

MONEY, PERCENT = "money", "percent"
METRICS: dict[str, tuple[str, float, float]] = {  # name: (kind, lowest, highest)
    "revenue": (MONEY, 120, 990),
    "gross margin": (PERCENT, 20, 75),
    "operating margin": (PERCENT, 3, 35),
    "net margin": (PERCENT, 1, 25),
    "operating cash flow": (MONEY, 60, 400),
    "free cash flow": (MONEY, 10, 300),
    "capital spending": (MONEY, 5, 200),
    "research spending": (MONEY, 5, 150),
}

TOOLS = (
    ToolSpec(
        "search",
        "Search the filings by words. Answers the best matching paths with scores and the matching line.",
        {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    ),
    ToolSpec(
        "list",
        "List the paths that begin with a prefix.",
        {"type": "object", "properties": {"prefix": {"type": "string"}}, "required": ["prefix"]},
    ),
    ToolSpec(
        "read",
        "Read one filing by its path.",
        {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    ),
)


class Filing(msgspec.Struct, frozen=True):
    company: str
    quarter: int | None
    """None for the annual report."""
    year: int
    figures: dict[str, float]
    order: tuple[str, ...]
    """In which order the document tells its metrics."""

    @property
    def period(self) -> str:
        return f"Q{self.quarter} {self.year}" if self.quarter else f"fiscal {self.year}"

    @property
    def path(self) -> str:
        return (
            f"{folder_of(self.company)}-10q-{self.year}-q{self.quarter}.html"
            if self.quarter
            else f"{folder_of(self.company)}-10k-{self.year}.html"
        )

    @property
    def title(self) -> str:
        return f"{self.company} {self.period}"

    def figure(self, metric: str) -> str:
        return shown(metric, self.figures[metric])

    def html(self) -> str:
        cells = "\n".join(f"<tr><td>{m}</td><td>{self.figure(m)}</td></tr>" for m in self.order)
        return f"<html><head><title>{self.title}</title></head>\n<body><h1>{self.title}</h1>\n<table>\n{cells}\n</table></body></html>\n"


def folder_of(company: str) -> str:
    """The part of the path that all of a company's filings share."""
    return "filings/" + company.lower().replace(" ", "-")


def shown(metric: str, value: float) -> str:
    return f"${value:.0f}M" if METRICS[metric][0] == MONEY else f"{value:.1f}%"


def company_names(count: int, rng: random.Random) -> list[str]:
    """Distinct two-word names. Any two calls may share names: hold out by drawing once and cutting."""
    pairs = rng.sample(range(len(FIRST_WORDS) * len(SECOND_WORDS)), count)
    return [f"{FIRST_WORDS[p // len(SECOND_WORDS)]} {SECOND_WORDS[p % len(SECOND_WORDS)]}" for p in pairs]


def make_filings(companies: Sequence[str], rng: random.Random) -> list[Filing]:
    return [make_filing(company, quarter, year, rng) for company in companies for quarter, year in (*QUARTERS, (None, FISCAL_YEAR))]


def make_filing(company: str, quarter: int | None, year: int, rng: random.Random) -> Filing:
    figures: dict[str, float] = {}
    for metric, (kind, low, high) in METRICS.items():
        drawn = rng.uniform(low, high)
        figures[metric] = round(drawn) if kind == MONEY else round(drawn, 1)
    order = list(METRICS)
    rng.shuffle(order)
    return Filing(company, quarter, year, figures, tuple(order))


# --- questions ------------------------------------------------------------------------------------------------------

ONE_FIGURE = (
    "What was the {metric} of {company} in {period}?",
    "What was {company}'s {metric} in {period}?",
    "{company} {period}: what was the {metric}?",
)
HIGHER_OF_TWO = "What was the higher {metric} of {company}: {first} or {second}?"
RATIO = "What was {part} as a share of {whole} for {company} in {period}?"
RATIOS = (("free cash flow", "revenue"), ("capital spending", "revenue"), ("research spending", "revenue"))


class Question(msgspec.Struct, frozen=True):
    """A question with everything that a teacher or a grader needs to know about it."""

    prompt: str
    answer: str
    metric: str
    filings: tuple[Filing, ...]
    """The evidence: one filing, or the two that are compared (the first holds the answer)."""
    difficulty: str
    shape: str
    """one_figure, higher_of_two, ratio"""


def ask_one_figure(filing: Filing, metric: str, rng: random.Random) -> Question:
    prompt = rng.choice(ONE_FIGURE).format(company=filing.company, metric=metric, period=filing.period)
    return Question(prompt, filing.figure(metric), metric, (filing,), "medium" if filing.quarter else "easy", "one_figure")


def ask_higher_of_two(first: Filing, second: Filing, metric: str) -> Question:
    high, low = sorted((first, second), key=lambda filing: filing.figures[metric], reverse=True)
    prompt = HIGHER_OF_TWO.format(company=first.company, metric=metric, first=first.period, second=second.period)
    return Question(prompt, high.figure(metric), metric, (high, low), "hard", "higher_of_two")


def ask_ratio(filing: Filing, part: str, whole: str) -> Question:
    share = 100 * filing.figures[part] / filing.figures[whole]
    prompt = RATIO.format(part=part, whole=whole, company=filing.company, period=filing.period)
    return Question(prompt, f"{share:.1f}%", part, (filing,), "hard", "ratio")


def draw_question(filings: Sequence[Filing], difficulty: str, ratio_share: float, rng: random.Random) -> Question:
    """One question about one company's filings."""
    quarterly = [f for f in filings if f.quarter]
    if difficulty == "easy":
        return ask_one_figure(next(f for f in filings if not f.quarter), rng.choice(list(METRICS)), rng)
    if difficulty == "medium":
        return ask_one_figure(rng.choice(quarterly), rng.choice(list(METRICS)), rng)
    if rng.random() < ratio_share:
        return ask_ratio(rng.choice(quarterly), *rng.choice(RATIOS))
    first, second = rng.sample(quarterly, 2)
    return ask_higher_of_two(first, second, rng.choice(list(METRICS)))


def make_questions(filings: Sequence[Filing], counts: dict[str, int], ratio_share: float, rng: random.Random) -> list[Question]:
    """Distinct questions, `counts` of each difficulty, spread over the companies."""
    by_company: dict[str, list[Filing]] = {}
    for filing in filings:
        by_company.setdefault(filing.company, []).append(filing)
    companies, asked, questions = list(by_company), set[tuple[object, ...]](), list[Question]()
    for difficulty, count in counts.items():
        wanted = len(questions) + count
        while len(questions) < wanted:
            question = draw_question(by_company[rng.choice(companies)], difficulty, ratio_share, rng)
            key = (question.shape, question.metric, frozenset(f.path for f in question.filings))
            if key not in asked:
                asked.add(key)
                questions.append(question)
    return questions


def as_row(question: Question, row_id: str) -> Row:
    paths = tuple(filing.path for filing in question.filings)
    return Row(
        id=row_id,
        prompt=question.prompt,
        reference_answer=question.answer,
        expected=Expected(tolerance_rel=0.001, evidence_path=paths[0] if len(paths) == 1 else paths, must_use_tools=("search",)),
        tools=TOOLS,
        metadata={"task_type": "numerical_qa", "difficulty": question.difficulty, "metric": question.metric, "shape": question.shape},
    )
