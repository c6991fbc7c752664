#!/bin/sh
# The wheel alone, in an empty environment, without the source tree: a problem of one's own from `blackbox new`
# to a report, and a sentence where an optional package is missing.
#
#     packaging/wheel_test.sh [PYTHON] [arguments of pip install, such as -c FILE]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-python3}
[ $# -gt 0 ] && shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade build
# from a copy: a build leaves folders beside the source
mkdir "$work/source"
(cd "$here" && git ls-files -z | xargs -0 tar cf -) | tar xf - -C "$work/source"
"$work/env/bin/python" -m build --wheel --outdir "$work" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
rm -rf "$work/source" "$work/env"

"$python" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check "$@" "$work"/*.whl
cd "$work"
unset PYTHONPATH
blackbox=$work/env/bin/blackbox
"$blackbox" --version
"$blackbox" new pump
OMP_NUM_THREADS=1 "$blackbox" run pump.py --steps 3 >run.log 2>&1 || { cat run.log; exit 1; }
report=$(ls runs/*/report.html)
grep -q "</html>" "$report"
"$blackbox" resume "$(dirname "$report")" >/dev/null
"$blackbox" list >/dev/null
"$blackbox" info >/dev/null

# a folder that was downloaded executes nothing
OMP_NUM_THREADS=1 "$blackbox" run image-classification --dataset shapes --network simple-730 --width None --methods fo \
    --steps 1 --train-images 64 --validation-images 20 --test-images 20 >run.log 2>&1 || { cat run.log; exit 1; }
"$work/env/bin/python" "$here/tests/tasks/hostile.py" "$blackbox" "$(ls -d runs/image-*)"

# what is optional is missed with the command that installs it
missed() {
    wanted=$1
    shift
    if "$@" >said.log 2>&1; then echo "Expected to fail: $*"; exit 1; fi
    grep -q "pip install 'blackbox-coupling\[$wanted\]'" said.log || { cat said.log; exit 1; }
    if grep -q Traceback said.log; then cat said.log; exit 1; fi
}
missed fields "$blackbox" report "$(dirname "$report")" --export
missed tensorboard "$blackbox" run pump.py --steps 3 --tensorboard
missed umbridge "$blackbox" serve pump.py:Solver
echo "The wheel works without the source tree: $(ls ./*.whl)"
