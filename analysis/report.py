"""report.md: the primary claim first, then the results on which it rests; times and versions last."""

from pathlib import Path

from analysis import accounts, options, pruning, results, selection, student_models, tradeoff
from analysis.cost import cost
from analysis.findings import Findings, Pictures, find_all
from analysis.frame import Study, read_study, trials_csv
from analysis.headline import headline
from analysis.importance import RESAMPLES
from analysis.rendering import render
from analysis.trained import trained
from kdtrain.storage.folder import write_bytes

BEST_SHOWN = 10


def write_report(sweep_folder: Path) -> Path:
    """Write report.md, its pictures and trials.csv from the stored results of a sweep.

    report.md is written last, so it names no picture that is not there yet. A picture that cannot be drawn is replaced
    by a sentence with the reason.

    Args:
        sweep_folder: The folder of the sweep, with study.json.

    Returns:
        The path of report.md.

    Raises:
        UserError: If the folder is not that of a sweep, or its files cannot be read.
    """
    study = read_study(sweep_folder)
    findings = find_all(study)
    pictures = draw(study, findings)
    write_bytes(sweep_folder / "trials.csv", trials_csv(study).encode())
    report = sweep_folder / "report.md"
    write_bytes(report, compose(study, findings, pictures).encode())
    return report


def draw(study: Study, findings: Findings) -> Pictures:
    """Draw all pictures into the folder of the sweep, and remove pictures of an earlier report."""
    try:
        from analysis.pictures import draw_all  # matplotlib may be missing
    except ImportError as error:
        return Pictures(reasons=(("this study", f"a package cannot be imported ({error})"),))
    return draw_all(study, findings)


def compose(study: Study, findings: Findings, pictures: Pictures) -> str:
    """Return the text of report.md."""
    of_pairs = [pair.p_holm for pair in findings.pairs]
    return render(
        "report.md.j2",
        study=study,
        pictures=pictures,
        headline=headline(study, findings.winner, findings.baseline, findings.teachers),
        trained=trained(study),
        tradeoff=tradeoff.tradeoff(study, findings.fronts),
        races=selection.races(study),
        fall=selection.fall(study),
        in_unit=selection.in_unit(study),
        unit=selection.unit(study),
        unit_of_a_difference="points" if selection.unit(study) == "%" else selection.unit(study),
        options=options.options(study, findings.candidates, findings.pairs),
        models=student_models.model_rows(study, findings.models),
        confirmed=results.confirmed(study, findings.candidates),
        unseen_classes=results.unseen_classes(study, findings.candidates),
        diverged=any(candidate.diverged for candidate in findings.candidates),
        corrected=sum(p is not None for p in [each.p_holm for each in findings.candidates] + of_pairs),
        reference=findings.reference,
        best_trials=results.best_trials(study, BEST_SHOWN),
        most_trials=BEST_SHOWN,
        hyperparameters=[(branch, results.hyperparameters(branch)) for branch in findings.branches],
        rank_correlations=pruning.rank_correlations(study),
        resamples=RESAMPLES,
        trial_counts=accounts.trial_counts(study),
        reasons=accounts.reasons(study),
        broken=accounts.broken(study),
        equal_trials=accounts.equal_trials(study),
        train_command=accounts.train_command(study),
        continue_command=(again := accounts.continue_command(study)),
        in_python=again.startswith("kdtrain."),
        cost=cost(study),
    )
