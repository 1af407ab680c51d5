"""The role's policy allows what the watcher calls, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
SERVICES = {"elbv2": "elasticloadbalancing", "autoscaling": "autoscaling", "sns": "sns"}


def called() -> set[str]:
    """service:Operation of every call in the source."""
    found = set()
    for file in (ROOT / "appliance" / "aws" / "actions").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        services = set(re.findall(r'\.(?:call|list_all)\(\s*"(\w+)"', text))
        for operation in re.findall(r'"([a-z]+(?:_[a-z]+)*)"', text):
            for service in services:
                name = "".join(word.capitalize() for word in operation.split("_"))
                if re.match(r"(describe|deregister|register|complete|record|set)_|publish$", operation):
                    found.add(f"{SERVICES[service]}:{name}")
    return found


def test_the_policy_allows_exactly_what_is_called() -> None:
    policy = json.loads((ROOT / "packaging" / "spot-watcher-iam-policy.json").read_text(encoding="utf-8"))
    allowed = set()
    for statement in policy["Statement"]:
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        allowed.update(actions)
        only_reads = all(":Describe" in action for action in actions)
        assert statement["Resource"] != "*" or only_reads, "what changes something is for named resources alone"
    assert allowed == called()
