#!/bin/sh
# A release's files, from its tag: a wheel and a source archive, built twice to the same bytes, their digests,
# and what they were made of as an unsigned SLSA statement. Nothing is uploaded.
#
#     git tag -s v0.3.0 && packaging/release.sh [PYTHON]     into dist/
set -eu
umask 022  # an archive has the modes of what is unpacked
here=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
cd "$here"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
commit=$(git rev-parse --verify --quiet "v$version^{commit}") || {
    echo "release: expected a tag v$version, as pyproject.toml has it, got none. Make it: git tag -s v$version" >&2
    exit 1
}
git show "$commit:pyproject.toml" | grep -q "^version = \"$version\"" &&
    git show "$commit:CHANGELOG.md" | grep -q "^## \[$version\] - [0-9]" || {
    echo "release: expected v$version to have that version, and its date in CHANGELOG.md's heading. Tag again." >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check build
SOURCE_DATE_EPOCH=$(git show --no-patch --format=%ct "$commit")
export SOURCE_DATE_EPOCH
for time in once again; do
    mkdir "$work/source"
    git archive "$commit" | tar xf - -C "$work/source"
    "$work/env/bin/python" -m build --outdir "$work/$time" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
    rm -rf "$work/source"
    mkdir "$work/source"  # an archive has the times at which files in it were made
    tar xf "$work/$time"/*.tar.gz -C "$work/source"
    (cd "$work/source" && tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - *) |
        gzip -n >"$work/archive" && mv "$work/archive" "$work/$time"/*.tar.gz
    rm -rf "$work/source"
done
(cd "$work/once" && sha256sum ./* | sed 's, \./, ,') >"$work/SHA256SUMS"
(cd "$work/again" && sha256sum --check --quiet "$work/SHA256SUMS") || {
    echo "release: expected two builds of one commit to have the same bytes, got others. See which file differs." >&2
    exit 1
}
rm -rf dist
mkdir dist
cp "$work/once"/* "$work/SHA256SUMS" dist/
"$work/env/bin/python" - "$commit" "v$version" <<'END' >"dist/provenance.json"
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

commit, tag = sys.argv[1:]
lines = [line.split() for line in Path("dist/SHA256SUMS").read_text().splitlines()]
statement = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": name, "digest": {"sha256": digest}} for digest, name in lines],
    "predicateType": "https://slsa.dev/provenance/v1",
    "predicate": {
        "buildDefinition": {
            "buildType": "packaging/release.sh",
            "externalParameters": {"tag": tag},
            "internalParameters": {"python": platform.python_version(), "build": version("build")},
            "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": commit}}],
        },
        "runDetails": {"builder": {"id": f"{platform.system()} {platform.machine()}"}},
    },
}
print(json.dumps(statement, indent=2))
END
cat dist/SHA256SUMS
