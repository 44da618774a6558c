"""Split people and questions into train, valid and test, so that no person and no question is in two splits.

Nearly all speakers are connected through a few people who talked with hundreds of others. Splitting people at random
would leave no complete conversation to test on. Instead, people are the nodes of a graph, and the edges count their
conversations. Test and valid are two communities of this graph (Louvain, Blondel et al. 2008, by networkx), chosen so
that few conversations cross between splits. Those that do are dropped.
Questions are split by a hash of their normalised form. The splits do not depend on a run's seed, so every run of the
recipe is evaluated on the same conversations.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TEST_SHARE = 168 / 4018  # of all conversations; enough for 300 test prompts with two per conversation
VALID_SHARE = 59 / 4018
RESOLUTIONS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # small communities have few turns, large ones cost training data
TRIALS = 2  # Louvain runs per resolution

QUESTION_TEST, QUESTION_VALID = 0.05, 0.03  # shares of the question/answer entries


@dataclass(frozen=True)
class _Community:
    people: frozenset[int]
    inside: int  # conversations between two of its people
    crossing: int  # conversations with a person outside


def split_people(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The split of each pair of speakers: train, valid, test, or "crossing" if the two are in different splits."""
    number = {person: i for i, person in enumerate(sorted({person for pair in pairs for person in pair}))}
    edges = Counter((min(number[a], number[b]), max(number[a], number[b])) for a, b in pairs)
    test, valid = _choose(_communities(edges), len(pairs))
    side = {person: "test" if i in test else "valid" if i in valid else "train" for person, i in number.items()}
    return [side[a] if side[a] == side[b] else "crossing" for a, b in pairs]


def split_question(question: str) -> str:
    """The split of a question: train, valid or test."""
    return _split_at(unit_hash("question", normalised(question)))


def split_person(person: str) -> str:
    """The split of everything that a person wrote: train, valid or test."""
    return _split_at(unit_hash("person", person))


def _split_at(position: float) -> str:
    return "test" if position < QUESTION_TEST else "valid" if position < QUESTION_TEST + QUESTION_VALID else "train"


def normalised(question: str) -> str:
    """The form in which questions are compared: NFKC, case folded, without punctuation and white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", question).casefold())
    kept = "".join(c for c in folded if not c.isspace() and unicodedata.category(c)[0] != "P")
    return kept or folded  # a question of punctuation only, such as "?!", keeps it


def unit_hash(*parts: str) -> float:
    """A number in [0, 1) that depends only on the strings: the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(parts).encode("utf-8"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def _communities(edges: Counter[tuple[int, int]]) -> list[_Community]:
    """Candidate communities. Nodes are integers, added in sorted order, so the order of sets has no effect."""
    import networkx as nx  # an optional dependency, which the rest of this module does not need

    graph = nx.Graph()
    graph.add_nodes_from(sorted({person for edge in edges for person in edge}))
    graph.add_weighted_edges_from((a, b, count) for (a, b), count in sorted(edges.items()))
    communities: dict[tuple[int, ...], _Community] = {}
    for resolution in RESOLUTIONS:
        for trial in range(TRIALS):
            for people in nx.community.louvain_communities(graph, resolution=resolution, seed=trial):
                communities.setdefault(tuple(sorted(people)), _measured(frozenset(people), graph))
    return [communities[people] for people in sorted(communities)]


def _measured(people: frozenset[int], graph: Any) -> _Community:
    inside = sum(n for a, b, n in graph.edges(people, data="weight") if a in people and b in people)
    touching = sum(n for _, _, n in graph.edges(people, data="weight"))
    return _Community(people, inside, touching - inside)


def _choose(communities: list[_Community], conversations: int) -> tuple[frozenset[int], frozenset[int]]:
    """The disjoint (test, valid) pair with the lowest total cost; two empty sets if all candidates overlap."""
    test_size, valid_size = max(1.0, TEST_SHARE * conversations), max(1.0, VALID_SHARE * conversations)
    tests = sorted(communities, key=lambda c: _cost(c, test_size))[:100]
    valids = sorted(communities, key=lambda c: _cost(c, valid_size))[:100]
    pairs = [(t, v) for t in tests for v in valids if not t.people & v.people]
    if not pairs:
        return frozenset(), frozenset()  # everybody talked with everybody: the caller reports it
    best = min(pairs, key=lambda pair: _cost(pair[0], test_size) + _cost(pair[1], valid_size))
    return best[0].people, best[1].people


def _cost(community: _Community, target: float) -> float:
    """Each crossing conversation costs as much as being one conversation off the target size."""
    return community.crossing + abs(community.inside - target)
