"""People and questions -> train, valid, test, so that nobody and nothing is in two of them.

Nearly all speakers hang together through a few who talked with hundreds of others, so that drawing people at random
leaves no whole conversation to test on. People are nodes, conversations weighted edges; test and valid are two
communities of that graph (Louvain, Blondel et al. 2008, by networkx), chosen so that few conversations cross between
splits. Those that cross are dropped. Questions are split by a hash of their normalised form.
Nothing here depends on a run's seed: every run of the recipe is judged on the same conversations.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TEST_SHARE = 168 / 4018  # of the conversations; enough for 300 test prompts at two a conversation
VALID_SHARE = 59 / 4018
RESOLUTIONS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # small communities have few turns, large ones cost training data
TRIALS = 2  # Louvain runs a resolution

QUESTION_TEST, QUESTION_VALID = 0.05, 0.03  # shares of the question/answer entries


@dataclass(frozen=True)
class _Community:
    people: frozenset[int]
    inside: int  # conversations among its people
    crossing: int  # conversations with somebody outside


def split_people(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """A split for each pair of speakers: train, valid, test, or "crossing" where the two are in different ones."""
    number = {person: i for i, person in enumerate(sorted({person for pair in pairs for person in pair}))}
    edges = Counter((min(number[a], number[b]), max(number[a], number[b])) for a, b in pairs)
    test, valid = _choose(_communities(edges), len(pairs))
    side = {person: "test" if i in test else "valid" if i in valid else "train" for person, i in number.items()}
    return [side[a] if side[a] == side[b] else "crossing" for a, b in pairs]


def split_question(question: str) -> str:
    place = unit_hash("question", normalised(question))
    return "test" if place < QUESTION_TEST else "valid" if place < QUESTION_TEST + QUESTION_VALID else "train"


def normalised(question: str) -> str:
    """What makes two questions the same: NFKC, case folded, without punctuation and white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    kept = "".join(c for c in folded if not c.isspace() and unicodedata.category(c)[0] != "P")
    return kept or folded  # "?!" is a question too


def unit_hash(*parts: str) -> float:
    """A number in [0, 1) that depends on the texts alone: the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(parts).encode("utf-8"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def _communities(edges: Counter[tuple[int, int]]) -> list[_Community]:
    """Candidates from several resolutions. Nodes are whole numbers, put in sorted: the order of sets never matters."""
    import networkx as nx  # here, because the rest of this module is used where no graph is

    graph = nx.Graph()
    graph.add_nodes_from(sorted({person for edge in edges for person in edge}))
    graph.add_weighted_edges_from((a, b, count) for (a, b), count in sorted(edges.items()))
    found: dict[tuple[int, ...], _Community] = {}
    for resolution in RESOLUTIONS:
        for trial in range(TRIALS):
            for people in nx.community.louvain_communities(graph, resolution=resolution, seed=trial):
                found.setdefault(tuple(sorted(people)), _measured(frozenset(people), graph))
    return [found[people] for people in sorted(found)]


def _measured(people: frozenset[int], graph: Any) -> _Community:
    inside = sum(n for a, b, n in graph.edges(people, data="weight") if a in people and b in people)
    touching = sum(n for _, _, n in graph.edges(people, data="weight"))
    return _Community(people, inside, touching - inside)


def _choose(communities: list[_Community], conversations: int) -> tuple[frozenset[int], frozenset[int]]:
    """The disjoint pair nearest to the two target sizes; a crossing conversation weighs as much as one off target."""
    wanted_test, wanted_valid = max(1.0, TEST_SHARE * conversations), max(1.0, VALID_SHARE * conversations)
    tests = sorted(communities, key=lambda c: _cost(c, wanted_test))[:100]
    valids = sorted(communities, key=lambda c: _cost(c, wanted_valid))[:100]
    pairs = [(t, v) for t in tests for v in valids if not t.people & v.people]
    if not pairs:
        return frozenset(), frozenset()  # everybody talked with everybody: the caller says so
    best = min(pairs, key=lambda pair: _cost(pair[0], wanted_test) + _cost(pair[1], wanted_valid))
    return best[0].people, best[1].people


def _cost(community: _Community, wanted: float) -> float:
    return community.crossing + abs(community.inside - wanted)
