"""What `bench.launch_cuda` times: steps planned in C++ and in Python, and their lists alone."""

from bench import launch, launch_cuda


def test_each_way_is_measured_and_written(nothing, monkeypatch, tmp_path):
    monkeypatch.setattr(launch_cuda, "FLAGS", ())  # as `nothing` is compiled
    assert launch.main(["cuda", "--repeats", "2", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "launch_cuda.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[2] for row in rows[2:]] == ["C++"] * 6 + ["Python"] * 6 + ["—"] * 3
    assert [row[1] for row in rows[2:8]] == ["on-the-fly"] * 3 + ["stored"] * 3
    assert all(float(row[3].split()[0]) > 0 for row in rows[2:])
