"""The tools that make pages and packages do what their first lines state."""

import check_package
import outputs
import pictures


def test_the_output_of_a_command_replaces_the_old_one(tmp_path):
    block = "$ echo one; pwd\nold\n$ printf 'a: 1/2, 0:03 gone\\nb\\n'\n$ printf '1\\n2\\n3\\n'\nold\nold\n...\n"
    new = outputs.refreshed(block, tmp_path, tmp_path)
    assert new == (
        f"$ echo one; pwd\none\n{tmp_path}\n$ printf 'a: 1/2, 0:03 gone\\nb\\n'\nb\n$ printf '1\\n2\\n3\\n'\n1\n2\n...\n"
    )


def test_the_path_of_the_folder_is_left_out(tmp_path):
    assert outputs.run("echo $PWD/in.mp4; echo wrong >&2", tmp_path, tmp_path) == ["in.mp4", "wrong"]


def test_a_package_without_weights_with_tests_or_too_large_is_seen(tmp_path):
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"")
    good = [*check_package.NEEDED, "turbovaed_cli/benchmarking/bench.py"]
    assert check_package.check(wheel, good) == []
    assert check_package.check(wheel, good[1:]) == [f"a.whl has no {good[0]}"]
    assert check_package.check(wheel, [*good, "tests/data/a.safetensors", "Makefile"]) == [
        "a.whl has tests/data/a.safetensors",
        "a.whl has Makefile",
    ]
    with wheel.open("wb") as file:
        file.truncate(check_package.MOST_BYTES + 1)
    assert "more than" in check_package.check(wheel, good)[0]


def test_a_picture_of_a_terminal_has_its_text_and_asks_no_other_site():
    svg = pictures.as_terminal("$ turbovaed\n\x1b[1mtable\x1b[0m", "a title")
    assert "table" in svg and "a&#160;title" in svg.replace(" ", "&#160;") and "@font-face" not in svg and "url(http" not in svg
