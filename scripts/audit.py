"""Known vulnerabilities of what constraints.txt pins, by pip-audit: part of `make check`.

A vulnerability that is not in ACCEPTED fails the check. A service that cannot be reached, or knows nothing of a package
(behind a mirror, without a network), does not: what was not audited is said, so that nobody takes silence for safety.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ACCEPTED: dict[str, str] = {}
"""Id of a vulnerability that stays -> why it cannot be met here, or what it waits for."""

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
AUDIT = [
    "pip_audit",
    "--requirement",
    str(PINS),
    "--no-deps",
    "--disable-pip",
    "--progress-spinner=off",
    "--format=json",
]
SECONDS = 120


def main() -> int:
    ignored = [f"--ignore-vuln={vulnerability}" for vulnerability in ACCEPTED]
    try:
        ran = subprocess.run(
            [sys.executable, "-m", *AUDIT, *ignored], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        packages = json.loads(ran.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        print("pip-audit: nothing was audited, the vulnerability service cannot be reached from here.")
        return 0
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'nothing'}"
        for package in packages
        for one in package.get("vulns", ())
    ]
    print("\n".join(found), end="\n" if found else "")
    rest = f"; {len(unknown)} are unknown to the service that answers here" if unknown else ""
    print(f"pip-audit: {len(found)} findings in {len(packages) - len(unknown)} packages{rest}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
