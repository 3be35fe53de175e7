"""Versions that the platforms have, and the workflow that runs the tests."""

import re

import pytest
import yaml
from packaging.requirements import Requirement

import utils
from tools import publish, try_versions

PLATFORMS = {  # what Colab had in August 2026, and Kaggle's newest torch known to us
    "colab": {"torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.1.3"},
    "kaggle": {"torch": "2.10.0"},
}


def requirements() -> list[Requirement]:
    lines = (utils.ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_is_pinned_over_the_platform(platform):
    for requirement in requirements():
        assert all(part.operator == ">=" for part in requirement.specifier), requirement
        version = PLATFORMS[platform].get(requirement.name)
        assert version is None or version in requirement.specifier, requirement


def test_python_versions_of_the_platforms_are_supported():
    """The code is checked against the oldest Python that the Makefile admits."""
    makefile = (utils.ROOT / "Makefile").read_text()
    oldest = re.search(r"sys\.version_info < \((\d+), (\d+)\)", makefile).groups()
    target = re.search(
        r'target-version = "py(\d)(\d+)"', (utils.ROOT / "pyproject.toml").read_text()
    )
    assert oldest == target.groups() == ("3", "10")  # Kaggle has 3.12, Colab 3.13
    assert ".".join(oldest) == try_versions.OLDEST_PYTHON


def test_workflow_runs_the_tests_on_pushes_and_weekly():
    text = (utils.ROOT / ".github" / "workflows" / "tests.yml").read_text()
    workflow = yaml.safe_load(text)
    events = workflow[True]  # YAML 1.1 reads the key "on" as true
    assert "push" in events and publish.BRANCH in events["push"]["branches-ignore"]
    assert re.fullmatch(r"\d+ \d+ \* \* \d", events["schedule"][0]["cron"])
    jobs = workflow["jobs"]
    tests, refresh = (
        [step.get("run", "") for step in jobs[name]["steps"]] for name in ("tests", "standalone")
    )
    assert "make lint test" in tests and jobs["tests"]["permissions"] == {"contents": "read"}
    assert "make publish REPO=${{ github.repository }}" in refresh[-1]
    assert f"git push origin {publish.BRANCH}" in refresh[-1]
    assert jobs["standalone"]["needs"] == "tests" and "'schedule'" in jobs["standalone"]["if"]
