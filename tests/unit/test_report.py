"""report.html: what it shows of synthetic runs, what it leaves out, and how a browser takes it."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import report as entry
from evaluation.metrics import MAIN_METRIC
from reporting.evaluations import METRIC
from reporting.page import build_report, embedded, render, write_report
from reporting.run import read_groups, run_folder
from reporting.titles import titles
from reporting.tokens import token_view
from synthetic_runs import HOSTILE, make_run, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOST_BYTES = 8e6
ALL_SECTIONS = "curves tokens gap todi adakd comparison answers cost".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """SFT, ToDi and AdaKD; every text in them holds a script."""
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / kind, kind, rows=24, epochs=4, text=HOSTILE) for kind in ("sft", "todi", "adakd")]


@pytest.fixture(scope="module")
def page(runs):
    out = runs[0].parent / "all.html"
    write_report(runs, out)
    return out


def keys(report):
    return [section.key for section in report.sections]


def figure(report, key):
    return next(figure for figure in report.figures if figure.key == key)


# --- in a browser -----------------------------------------------------------------------------------------------------


def browse(page, folder):
    """The page after its scripts have run, and what Chromium's console says, refused requests among it."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    words = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --window-size=1280,9000 --dump-dom".split()
    words += [f"--user-data-dir={folder / 'profile'}", "--proxy-server=127.0.0.1:9", "--virtual-time-budget=20000"]
    done = subprocess.run([CHROMIUM, *words, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_shows_all_of_it_and_asks_the_network_for_nothing(runs, page, tmp_path):
    assert page.stat().st_size < MOST_BYTES
    dom, console = browse(page, tmp_path)
    assert console == []
    assert dom.count('class="main-svg"') >= len(set(re.findall(r'data-figure="(\w+)"', dom))) > 20
    assert dom.count('class="token"') > 5
    body = dom[dom.index("<body") : dom.index('<script type="application/json"')]
    assert "alert(1)" in body and "<script>" not in body


def test_a_request_would_be_seen(page, tmp_path):
    asking = tmp_path / "asking.html"
    asking.write_text(page.read_text().replace("<header>", '<header><img src="https://example.com/x.png">'))
    assert any("example.com" in line for line in browse(asking, tmp_path)[1])


# --- hostile texts ----------------------------------------------------------------------------------------------------


def test_a_script_in_a_row_or_a_name_stays_text(tmp_path, page):
    text = page.read_text()
    assert text.count("<script") == 3 and HOSTILE not in text
    run = make_run(tmp_path / "<script>alert(1)<", "todi", rows=1)
    text = render(build_report(read_groups([run])))
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;" in text


def test_embedded_json_is_json_and_ends_no_element():
    value = {"text": "</script><!-- \u2028", "numbers": [np.float32(np.nan), np.inf, np.int64(3)]}
    text = embedded(value)
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"text": value["text"], "numbers": [None, None, 3]}


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_three_runs_show_every_section(runs):
    report = build_report(read_groups(runs))
    assert keys(report) == ALL_SECTIONS
    assert [series.label for series in figure(report, "dev_nll").series] == ["sft", "todi", "adakd", "teacher"]
    assert set(figure(report, "dev_nll").series[-1].y) == {1.7}
    assert "adakd is best: ROUGE-L on dolly-valid" in report.head["headline"]
    assert [card["best"] for card in report.head["cards"] if "best" in card] == [True]
    gaps = [card["gap"] for card in report.head["cards"]]
    assert gaps[0] is None and "of the dev NLL gap between sft and the teacher closed" in gaps[1]
    assert report.head["commands"][0][1].startswith(".venv/bin/python code/distillation.py --data-dir")
    assert "a notable thing" in report.head["warnings"][0]
    assert dict(report.head["cards"][0]["facts"])["parameters"] == "1.23 M"
    (comparison,) = (section for section in report.sections if section.key == "comparison")
    assert re.fullmatch(
        r"todi − sft \+\d+\.\d\d \[\S+, \S+\], p [<=] 0\.\d+; \d+ better, \d equal, \d+ worse", comparison.content[0]
    )


def test_the_matrix_is_a_table(runs):
    text = render(build_report(read_groups(runs)))
    table = text[text.index('<div class="matrix">') : text.index("</table>")]
    first, *rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    assert re.findall(r'<th scope="col">(.*?)</th>', first) == ["sft", "todi", "adakd"] and len(rows) == 3
    cells = re.findall(r'class="(\w+)" style="--share: (\d+)%">([^<]*)<', rows[0])
    assert [cell[0] for cell in cells] == ["under"] * 3 and cells[2][1] == "55" and cells[2][2].startswith("−")
    assert 'data-figure="significance"' not in text


def test_titles_of_prompts_leave_out_their_template():
    prompts = [f"Below is a task.\n\n### Instruction:\nName {what}.\n\n### Response:\n" for what in ("a", "b")]
    assert titles([*prompts, "Another\nkind"]) == ["Name a.", "Name b.", "Another kind"]
    assert titles(["the same", "the same", ""]) == ["the same", "the same", ""]


@pytest.mark.parametrize(
    ("kind", "made", "sections"),
    [
        ("sft", {"probe": False, "evaluated": False}, ["curves", "cost"]),
        ("sft", {"evaluated": False}, ["curves", "tokens", "cost"]),
        ("todi", {"evaluated": False}, ["curves", "tokens", "gap", "todi", "cost"]),
        ("adakd", {"probe": False}, ["curves", "todi", "adakd", "cost"]),
    ],
)
def test_what_has_no_data_is_left_out(tmp_path, kind, made, sections):
    report = build_report(read_groups([make_run(tmp_path / "run", kind, **made)]))
    assert keys(report) == sections
    assert all(f'href="#{key}"' not in render(report) for key in set(ALL_SECTIONS) - set(sections))


def test_a_run_without_anything_but_flags(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    report = build_report(read_groups([tmp_path]))
    assert keys(report) == [] and report.head["cards"][0]["score"]["text"] == "–"
    assert "not evaluated" in render(report)


def test_a_running_process_may_be_writing(tmp_path):
    run = make_run(tmp_path / "run", "todi", evaluated=False)
    for name in ("metrics", "dev_metrics", "probe"):
        with (run / f"{name}.jsonl").open("a") as file:
            file.write('{"step": 61, "ep')
    (group,) = read_groups([run])
    assert group.first.steps[-1]["step"] == 60 and render(build_report([group]))


def test_seeds_of_one_setting_are_a_mean_with_a_band(tmp_path):
    losses = [[3.0, 2.0], [4.0, 2.0]]
    for seed, values in zip((10, 20), losses):
        run = make_run(tmp_path / f"seed{seed}", "todi", seed=seed, probe=False, evaluated=False)
        flags = json.loads((run / "args.json").read_text())
        (run / "args.json").write_text(json.dumps(flags | {"save_dir": str(run)}))
        write(run / "dev_metrics.jsonl", [{"step": 10 * i, "epoch": i, "loss": loss} for i, loss in enumerate(values)])
    (group,) = read_groups([tmp_path / "seed10", tmp_path / "seed20"])
    (series,) = figure(build_report([group]), "dev_nll").series
    assert (group.label, list(series.y)) == ("todi (2 seeds)", [3.5, 2.0])
    np.testing.assert_allclose(np.subtract(series.high, series.y), np.std(losses, axis=0, ddof=1))


def test_the_gap_to_an_evaluated_teacher(tmp_path):
    sft, todi, teacher = (make_run(tmp_path / kind, kind, text="a") for kind in ("sft", "todi", "adakd"))
    flags = json.loads((todi / "args.json").read_text())
    checkpoint = next(teacher.glob("epoch*"))
    (todi / "args.json").write_text(json.dumps(flags | {"teacher_model_path": str(checkpoint)}))
    groups = read_groups([sft, todi])
    means = [float(run.evaluations[0].scores_N.mean()) for run in (groups[0].first, groups[1].first)]
    goal = float(groups[1].first.teacher_evaluations[0].scores_N.mean())
    closed = f"{100 * (means[1] - means[0]) / (goal - means[0]):.0f} %"
    report = build_report(groups)
    assert report.head["cards"][1]["gap"] == f"{closed} of the ROUGE-L gap between sft and the teacher closed"
    (comparison,) = (section for section in report.sections if section.key == "comparison")
    assert f"gap closed {closed}" in comparison.content[0]


def change_flags(run, **flags):
    path = run / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | flags))


def test_dev_scores_of_different_dev_sets_are_not_compared(tmp_path):
    runs = [make_run(tmp_path / kind, kind, evaluated=False) for kind in ("sft", "todi", "adakd")]
    head = build_report(read_groups(runs)).head
    assert "adakd is best: best dev NLL" in head["headline"] and "gap between sft" in head["cards"][2]["gap"]
    change_flags(runs[2], data_dir="data/other", lr=1)
    head = build_report(read_groups(runs)).head
    assert head["headline"] == "" and not any(card.get("best") for card in head["cards"])
    assert head["cards"][2]["gap"] is None and "gap between sft" in head["cards"][1]["gap"]
    assert head["warnings"][-1] == (
        "the runs differ in --data-dir, so their dev scores are not compared: "
        "data/dolly (sft, todi); data/other (adakd)"
    )


@pytest.mark.parametrize(
    ("teacher", "end", "gap"),
    [
        (1.0, 1.5, "50 % of the dev NLL gap between the start and the teacher closed"),
        (1.0, 2.5, "−50 % of the dev NLL gap between the start and the teacher closed"),
        (1.0, 0.9, None),  # better than the teacher
        (2.0, 1.5, None),
        (2.1, 1.5, None),
        (1.999, 3.0, None),
    ],
)
def test_a_gap_is_closed_where_there_is_one(tmp_path, teacher, end, gap):
    run = make_run(tmp_path / "todi", "todi", evaluated=False)
    dev = [{"step": 0, "epoch": 0, "loss": 2.0, "teacher_loss": teacher}, {"step": 20, "epoch": 1, "loss": end}]
    write(run / "dev_metrics.jsonl", dev)
    assert build_report(read_groups([run])).head["cards"][0]["gap"] == gap


def test_evaluations_under_other_settings_are_not_compared(tmp_path):
    sft, todi = (make_run(tmp_path / kind, kind) for kind in ("sft", "todi"))
    (path,) = todi.glob("eval/*/*/*/settings.json")
    path.write_text(json.dumps({"weights": "w", "max_length": 1}))
    report = build_report(read_groups([sft, todi]))
    assert "comparison" not in keys(report) and "answers" not in keys(report)
    assert any("dolly-valid: the runs were evaluated under different settings" in w for w in report.head["warnings"])


def test_the_metric_is_the_main_one_of_evaluation():
    assert METRIC == MAIN_METRIC


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_token_view_has_both_models_choices(runs):
    groups = read_groups(runs[1:2])
    view = token_view(groups)
    probed = groups[0].first.probe
    shown = view["runs"][0]["rows"][0]["epochs"][-1]
    (row,) = (row for row in probed if row.row == 0 and row.epoch == shown["epoch"])
    flat = shown["tops"][3]
    entries = [flat[i : i + 4] for i in range(0, len(flat), 4)]
    for top, column in ((row.student_top, 1), (row.teacher_top, 2)):
        best = sorted(entries, key=lambda entry: -entry[column])[:5]
        assert [view["vocabulary"][entry[0]] for entry in best] == top.tokens[3]
        np.testing.assert_allclose(best[0][column] / view["probability"], top.values_NK3[3, 0, column - 1], atol=1e-4)
    np.testing.assert_allclose(
        np.array(shown["values"]["forward_kl"]) / view["scale"], row.values["forward_kl"], atol=1e-3
    )
    fields = [measure["field"] for measure in view["measures"]]
    assert "todi_weight" in fields and "temperature" not in fields


def test_the_token_view_keeps_to_its_budget(runs, monkeypatch):
    groups = read_groups(runs)
    whole = len(embedded(token_view(groups)))
    monkeypatch.setattr("reporting.tokens.BUDGET", whole // 3)
    view = token_view(groups)
    assert len(embedded(view)) < whole // 2 and all(run["rows"] for run in view["runs"])


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_page_and_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    run = make_run(tmp_path / "$run_1$", "adakd", text="$x_{$")
    entry.main([str(next(run.glob("epoch*")))])  # a checkpoint stands for its run
    assert capsys.readouterr().out.split("\n")[:2] == [str(run / "report.html"), str(run / "report_figures")]
    drawn = build_report(read_groups([run])).figures
    names = {f"{figure.key}.{extension}" for figure in drawn for extension in ("svg", "png", "pdf")}
    assert {path.name for path in (run / "report_figures").iterdir()} == names
    assert "Dev NLL" in (run / "report_figures/dev_nll.svg").read_text()
    entry.main([str(run), "--out", str(tmp_path / "x.html"), "--no-paper"])
    assert (tmp_path / "x.html").stat().st_size < MOST_BYTES and not (tmp_path / "x_figures").exists()


def test_the_page_of_several_runs_is_named_by_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(entry, "ROOT", tmp_path)
    for name in ("sft", "todi", "adakd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.json").write_text("{}")
    for names in (["sft", "todi"], ["sft", "adakd"]):
        entry.main([*(str(tmp_path / name) for name in names), "--no-paper"])
        assert capsys.readouterr().out.strip() == str(tmp_path / "outputs/tables" / "-".join(names) / "report.html")
    assert len(list((tmp_path / "outputs/tables").glob("*/report.html"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "RUN nowhere: neither args.json nor metrics.jsonl is there; pass the folder of a run"),
        (["{run}", "--out", "{run}"], "--out {run}: name a file in a folder that exists"),
        (["{run}", "--out", "{run}/no/x.html"], "--out {run}/no/x.html: name a file in a folder that exists"),
    ],
)
def test_mistakes(tmp_path, words, message):
    (tmp_path / "args.json").write_text("{}")
    with pytest.raises(ValueError, match=re.escape(message.format(run=tmp_path))):
        entry.main([word.format(run=tmp_path) for word in words])


def test_it_needs_no_torch(root, tmp_path):
    (tmp_path / "args.json").write_text("{}")
    code = f"import sys, report; report.main([{str(tmp_path)!r}]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root / "code", check=True, timeout=60)


def test_the_script_takes_paths_from_where_it_is_called(root, tmp_path):
    (tmp_path / "args.json").write_text("{}")
    command = ["bash", str(root / "scripts/report.sh"), ".", "--out", "my report.html"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "GPUS": "0"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "my report.html").is_file()


def test_a_failed_report_does_not_fail_the_run(tmp_path, caplog, monkeypatch):
    import distillation

    logger = logging.getLogger("distillation")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])
    (tmp_path / "args.json").write_text("not JSON")
    distillation.write_own_report(tmp_path)
    assert "report.html was not written" in caplog.text and f"bash scripts/report.sh {tmp_path}" in caplog.text
    (tmp_path / "args.json").write_text("{}")
    distillation.write_own_report(tmp_path)
    assert run_folder(tmp_path) == Path(tmp_path).resolve() and (tmp_path / "report.html").is_file()
