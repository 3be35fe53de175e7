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
WORKFLOW = utils.ROOT / ".github" / "workflows" / "tests.yml"


def requirements() -> list[Requirement]:
    lines = (utils.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_is_pinned_over_the_platform(platform):
    for requirement in requirements():
        assert all(part.operator == ">=" for part in requirement.specifier), requirement
        version = PLATFORMS[platform].get(requirement.name)
        assert version is None or version in requirement.specifier, requirement


def test_python_versions_of_the_platforms_are_supported():
    """The code is checked against the oldest Python that the Makefile admits."""
    makefile = (utils.ROOT / "Makefile").read_text(encoding="utf-8")
    oldest = re.search(r"sys\.version_info < \((\d+), (\d+)\)", makefile).groups()
    target = re.search(
        r'target-version = "py(\d)(\d+)"',
        (utils.ROOT / "pyproject.toml").read_text(encoding="utf-8"),
    )
    assert oldest == target.groups() == ("3", "10")  # Kaggle has 3.12, Colab 3.13
    assert ".".join(oldest) == try_versions.OLDEST_PYTHON


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))


def commands(job: dict) -> str:
    return "\n".join(step.get("run", "") for step in job["steps"])


def python_of(job: dict) -> str:
    return next(s["with"]["python-version"] for s in job["steps"] if "setup-python" in str(s))


def test_workflow_runs_the_tests_on_pushes_and_weekly(workflow):
    events, jobs = workflow[True], workflow["jobs"]  # YAML 1.1 reads the key "on" as true
    assert publish.BRANCH in events["push"]["branches-ignore"] and "pull_request" in events
    assert re.fullmatch(r"\d+ \d+ \* \* \d", events["schedule"][0]["cron"])
    assert "make lint test" in commands(jobs["full"]) and "make all" in commands(jobs["notebooks"])
    assert "tools.try_versions oldest" in commands(jobs["oldest"])
    assert python_of(jobs["full"]) == try_versions.PYTHONS[0]
    assert python_of(jobs["oldest"]) == try_versions.OLDEST_PYTHON
    assert workflow["defaults"]["run"]["shell"] == "bash"  # else a failure before `| tee` is lost


def test_workflow_publishes_what_has_passed(workflow):
    """What publishes waits for all tests, only the default branch's, and is not cut short."""
    jobs = workflow["jobs"]
    assert jobs["copies"]["needs"] == ["full", "oldest", "notebooks"]
    for name, needs in (("publish", "copies"), ("site", "publish"), ("deploy", "site")):
        assert jobs[name]["needs"] == needs
    assert "github.event.repository.default_branch" in jobs["copies"]["if"]
    # Whoever opens a copy finds in the release what it asks for.
    *_, release, branch = commands(jobs["publish"]).split("\ngit push ")
    assert "gh release create" in release and branch.startswith(f"origin {publish.BRANCH}")
    for name, job in jobs.items():
        concurrency = job.get("concurrency", {})
        cancelled = isinstance(concurrency, dict) and concurrency.get("cancel-in-progress", False)
        assert cancelled == (name not in ("copies", "publish", "site", "deploy")), name


def test_workflow_has_the_least_permissions(workflow):
    may_write = {"publish": {"contents"}, "deploy": {"pages", "id-token"}}
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        permissions = job.get("permissions", {})
        writes = {scope for scope, access in permissions.items() if access == "write"}
        assert writes == may_write.get(name, set()), name
        assert job["timeout-minutes"] <= 90, name
        assert "${{" not in commands(job), f"{name}: pass it by env, so that it cannot be code"
        installs = re.search(r"pip|make|python", commands(job))
        assert not (writes and installs), f"{name}: what it installs could write, too"
        for step in job["steps"]:
            if "checkout" in step.get("uses", "") and name != "publish":
                assert step["with"]["persist-credentials"] is False, name


def test_actions_are_pinned():
    """By a commit, with its version beside it, the same in every job; Dependabot renews them."""
    uses = re.findall(r"uses: (.*)", WORKFLOW.read_text(encoding="utf-8"))
    for line in uses:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    assert len(set(uses)) == len({line.partition("@")[0] for line in uses})
    dependabot = yaml.safe_load(
        (WORKFLOW.parents[1] / "dependabot.yml").read_text(encoding="utf-8")
    )
    assert [part["package-ecosystem"] for part in dependabot["updates"]] == ["github-actions"]
