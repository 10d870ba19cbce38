"""The laws of names: the last created version counts, and no writer undoes a newer one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from service.blobs import Objects, digest_of, open_objects, shared_key
from service.errors import BadParameter, DamagedObject, NoSuchPicture
from service.names import picture_names
from service.names.picture_names import HISTORY, PictureNames
from service.names.version import NamedStream, PictureVersion, check_name, mse_of

LMBDA = 0.013
JOB = "0123456789abcdef0123456789abcdef"
NAME = "blog/2024/cat.jpg"


@pytest.fixture(params=["folder", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    yield open_objects(tmp_path if request.param == "folder" else "memory:///")


@pytest.fixture
def names(objects: Objects) -> PictureNames:
    return PictureNames(objects)


def stream_of(data: bytes, psnr_db: float | None = 30.0, visible: float = 1.0) -> NamedStream:
    return NamedStream(
        sha256=digest_of(data),
        size_bytes=len(data),
        width=20,
        height=12,
        rate=4.0,
        tune="psnr",
        mse=None if psnr_db is None else mse_of(psnr_db),
        visible=visible,
    )


def put(names: PictureNames, data: bytes, name: str = NAME, **more: Any) -> PictureVersion:
    """Put a stream whose source is itself."""
    return names.put(name, data, stream_of(data), digest_of(data), **more).version


def improve(
    names: PictureNames, version: PictureVersion, data: bytes, psnr_db: float = 30.0
) -> PictureVersion | None:
    """Improve what a version's put gave the name."""
    mse, plain_mse = mse_of(psnr_db), mse_of(30.0)
    return names.improve(NAME, version.put, data, mse, JOB, LMBDA, plain_mse)


@pytest.fixture
def before_create(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], object]], None]:
    """Makes the next creation of an object wait until something else has been done."""
    create = objects.create

    def arrange(other: Callable[[], object]) -> None:
        def interrupted(key: str, data: bytes) -> bool:
            monkeypatch.setattr(objects, "create", create)
            other()
            return create(key, data)

        monkeypatch.setattr(objects, "create", interrupted)

    return arrange


Arrange = Callable[[Callable[[], object]], None]


def test_the_last_put_counts_and_its_bytes_are_an_object(
    names: PictureNames, objects: Objects
) -> None:
    with pytest.raises(NoSuchPicture):
        names.present(NAME)
    with pytest.raises(NoSuchPicture):
        names.history(NAME)
    first, second = put(names, b"one"), put(names, b"two")
    assert (first.number, second.number) == (1, 2)
    assert names.present(NAME) == second
    assert names.history(NAME) == (second, first)
    assert objects.get(shared_key(digest_of(b"two"))) == b"two"


def test_the_same_source_again_is_no_new_version_also_of_an_improved_one(
    names: PictureNames,
) -> None:
    first = put(names, b"long one")
    assert put(names, b"long one") == first
    better = improve(names, first, b"short")
    assert better is not None and put(names, b"long one") == better
    again = put(names, b"long one", lost=better.token)
    assert (again.number, again.event) == (3, "put")


def test_a_stream_improves_a_name_only_if_its_loss_is_lower_and_only_once(
    names: PictureNames, objects: Objects
) -> None:
    first = put(names, bytes(100))
    worse = stream_of(bytes(99), 27.0)
    assert first.stream is not None and worse.loss(LMBDA) > first.stream.loss(LMBDA)
    assert improve(names, first, bytes(100)) is None
    assert improve(names, first, bytes(99), 27.0) is None
    assert objects.head(shared_key(digest_of(bytes(99)))) is None
    better = improve(names, first, bytes(60))
    assert better is not None and names.present(NAME) == better
    assert (better.number, better.event, better.put, better.job) == (2, "improved", first.put, JOB)
    assert objects.get(shared_key(digest_of(bytes(60)))) == bytes(60)
    assert improve(names, first, bytes(60)) is None
    best = improve(names, first, bytes(80), 60.0)
    assert best is not None and best.stream is not None and best.stream.psnr_db == pytest.approx(60)
    assert len(names.history(NAME)) == 3


def test_the_share_of_visible_samples_stays_that_of_the_put(names: PictureNames) -> None:
    data = bytes(100)
    first = names.put(NAME, data, stream_of(data, visible=0.25), digest_of(data)).version
    better = improve(names, first, bytes(99), 29.9)
    assert better is not None and better.stream is not None and better.stream.visible == 0.25
    bpp, mse = 8 * 99 / 240, 255**2 / 10**2.99
    assert better.stream.loss(LMBDA) == pytest.approx(bpp + LMBDA * 0.25 * mse)


def test_a_plain_stream_that_was_not_measured_has_the_error_that_the_job_found(
    names: PictureNames,
) -> None:
    data = bytes(100)
    first = names.put(NAME, data, stream_of(data, None), digest_of(data)).version
    assert improve(names, first, bytes(99), 20.0) is None
    assert improve(names, first, bytes(99), 30.0) is not None


def test_exact_streams_have_no_error(names: PictureNames) -> None:
    exact = stream_of(bytes(10), math.inf)
    assert exact.psnr_db == math.inf and exact.loss(LMBDA) == exact.bpp
    version = names.put(NAME, bytes(10), exact, digest_of(b"source")).version
    assert names.present(NAME) == version and version.stream == exact


def test_of_two_puts_at_once_both_versions_are_real_and_the_later_one_stays(
    names: PictureNames, before_create: Arrange
) -> None:
    before_create(lambda: put(names, b"quick"))
    slow = put(names, b"slow")
    assert (slow.number, names.present(NAME)) == (2, slow)
    assert [v.source for v in names.history(NAME)] == [digest_of(b"slow"), digest_of(b"quick")]


def test_an_improvement_never_covers_a_newer_put(
    names: PictureNames, before_create: Arrange
) -> None:
    first = put(names, bytes(100))
    before_create(lambda: put(names, b"another picture"))
    assert improve(names, first, bytes(50)) is None
    newest = names.present(NAME)
    assert newest.source == digest_of(b"another picture") and newest.number == 2
    assert improve(names, first, bytes(50)) is None
    put(names, bytes(100))  # the same source, but another put
    assert improve(names, first, bytes(50)) is None


def test_an_improvement_never_undoes_a_deletion(
    names: PictureNames, before_create: Arrange
) -> None:
    first = put(names, bytes(100))
    before_create(lambda: names.delete(NAME))
    assert improve(names, first, bytes(50)) is None
    for again in (names.present, names.delete):
        with pytest.raises(NoSuchPicture):
            again(NAME)
    assert [v.event for v in names.history(NAME)] == ["deleted", "put"]
    assert put(names, b"new").number == 3


def test_a_deletion_and_a_put_at_once_end_as_the_later_one_says(
    names: PictureNames, before_create: Arrange
) -> None:
    put(names, b"old")
    before_create(lambda: names.delete(NAME))
    assert put(names, b"new") == names.present(NAME)
    before_create(lambda: put(names, b"newer"))
    assert names.delete(NAME).number == 5
    with pytest.raises(NoSuchPicture):
        names.present(NAME)


def test_as_many_versions_are_kept_as_the_history_has(
    names: PictureNames, objects: Objects
) -> None:
    for number in range(HISTORY + 3):
        put(names, str(number).encode())
    kept = [version.number for version in names.history(NAME)]
    assert kept == list(range(HISTORY + 3, 3, -1))
    assert len(list(objects.list("names"))) == HISTORY
    assert len(list(objects.list("objects"))) == HISTORY + 3


def test_a_writer_that_stalls_until_its_number_is_gone_starts_over(
    names: PictureNames, before_create: Arrange
) -> None:
    """Else it would believe in a version that nobody sees, as the number is free again."""
    first = put(names, bytes(100))

    def many() -> None:
        for number in range(HISTORY + 3):
            put(names, str(number).encode())

    before_create(many)
    slow = put(names, b"slow")
    assert names.present(NAME) == slow and slow.number == HISTORY + 5
    before_create(many)
    assert improve(names, slow, b"s") is None
    assert improve(names, first, bytes(50)) is None
    assert {v.event for v in names.history(NAME)} == {"put"}
    assert [v.number for v in names.history(NAME)] == list(range(28, 18, -1))


def test_a_creation_whose_answer_was_lost_counts_once(
    names: PictureNames, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = objects.create
    monkeypatch.setattr(objects, "create", lambda *given: create(*given) and False)
    assert put(names, b"one") == names.present(NAME)
    assert len(names.history(NAME)) == 1


def test_writers_in_many_threads_each_get_a_version_of_their_own(
    names: PictureNames,
) -> None:
    with ThreadPoolExecutor(4) as threads:
        versions = list(threads.map(lambda n: put(names, f"{n}".encode()), range(24)))
    assert sorted(v.number for v in versions) == list(range(1, 25))
    last = max(versions, key=lambda v: v.number)
    assert names.present(NAME) == last
    assert [v.number for v in names.history(NAME)] == list(range(24, 24 - HISTORY, -1))


def test_whatever_many_writers_do_each_version_follows_from_the_one_before(
    names: PictureNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_names, "HISTORY", 1000)
    monkeypatch.setattr(picture_names, "TRIES", 1000)
    put(names, bytes(200))
    improve(names, names.present(NAME), bytes(199))  # later ones may all come too late

    def write(seed: int) -> None:
        chance, seen = random.Random(seed), names.history(NAME)[0]
        for _ in range(12):
            with suppress(NoSuchPicture):
                match chance.randrange(5):
                    case 0:
                        put(names, bytes(chance.randrange(150, 200)))
                    case 1:
                        names.delete(NAME)
                    case 2:
                        improve(names, seen, bytes(chance.randrange(1, 150)))
                    case _:
                        seen = names.present(NAME)
                        improve(names, seen, bytes(chance.randrange(1, 150)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    versions = names.history(NAME)[::-1]
    assert [v.number for v in versions] == list(range(1, len(versions) + 1))
    for before, after in pairwise(versions):
        if after.event == "improved":
            assert before.put == after.put and before.stream and after.stream
            assert after.stream.loss(LMBDA) < before.stream.loss(LMBDA)
        else:
            assert after.put == after.token
            assert before.event != "deleted" or after.event == "put"
            assert before.source != after.source
    assert {v.event for v in versions} == {"put", "improved", "deleted"}  # all of them were tried


KEY = f"names/{NAME}/@/00000001"


def test_what_is_no_version_is_refused_and_a_put_goes_past_it(
    names: PictureNames, objects: Objects
) -> None:
    good = put(names, b"one").model_dump_json()
    broken = (
        b"", b"{", b"[]", b"null", b"\xff", good.encode() + b" " * 5000,
        good.replace('"number":1', '"number":2').encode(),
        good.replace('"number":1', '"number":"1"').encode(),
        good.replace('"number":1', '"number":1,"more":1').encode(),
        good.replace('"event":"put"', '"event":"deleted"').encode(),
        good.replace(digest_of(b"one"), "../../secret").encode(),
        good.replace('"width":20', '"width":0').encode(),
        good.replace('"visible":1.0', '"visible":NaN').encode(),
        b'{"a":' * 500 + b"1" + b"}" * 500,
    )  # fmt: skip
    for data in broken:
        objects.put_named(KEY, data)
        for read in (names.present, names.history):
            with pytest.raises(DamagedObject, match=r"00000001"):
                read(NAME)
        assert names.pictures() == ()
    assert improve(names, PictureVersion.model_validate_json(good), b"x") is None
    assert names.delete(NAME).number == 2
    objects.put_named(KEY.replace("1", "2"), b"")
    assert put(names, b"one").number == 3


def test_lists_have_every_name_once_in_pages_by_prefix(
    names: PictureNames, objects: Objects
) -> None:
    all_names = ["a", "a/1", "a/b", "a.b", "ab", "B/c", "a/b/c/d/e/f/g/h", "gone", "0"]
    for name in all_names:
        put(names, b"one", name)
        put(names, name.encode() + b"2", name)
    names.delete("gone")
    for stray in ("names/x", "names/a/@/x", "names/a/@/1", "names/a b/@/00000001"):
        objects.put_named(stray, b"{}")
    whole = [name for name, _ in names.pictures()]
    assert sorted(whole) == sorted(set(all_names) - {"gone"})
    assert all(version.number == 2 for _, version in names.pictures())
    for limit in (1, 2, 3):
        pages: list[str] = []
        while page := names.pictures(after=pages[-1] if pages else "", limit=limit):
            assert len(page) <= limit
            pages += [name for name, _ in page]
        assert pages == whole
    for prefix in ("", ".", "a", "a/", "a/b", "a/b/c/", "B", "ab", "x"):
        page = [name for name, _ in names.pictures(prefix)]
        assert page == [name for name in whole if name.startswith(prefix)], prefix
    for wrong in ("a//b", "../", "a b", "/", "@"):
        with pytest.raises(BadParameter):
            names.pictures(wrong)


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", "a b", "a@", "a\n", "é", "a" * 201,
     "a/b/c/d/e/f/g/h/i", "%2e", "a#1", "a\\b", "a\0"],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(name: str, objects: Objects) -> None:
    with pytest.raises(BadParameter):
        check_name(name)
    names = PictureNames(objects)
    for use in (names.present, names.history, names.delete):
        with pytest.raises(BadParameter):
            use(name)
    with pytest.raises(BadParameter):
        put(names, b"one", name)
    assert list(objects.list("names")) == []
