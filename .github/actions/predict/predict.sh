#!/usr/bin/env bash
# The action's two steps: `predict.sh install` and `predict.sh predict`. What they are told is in the environment, as
# action.yml and GitHub set it. Ends with 0 nothing regressed (or FAIL=false), 1 something did, 4 a mistake.
set -euo pipefail

MARK="<!-- costmodel predict -->" # by which the comment is found again

install() {
  local root
  root="$(cd "$GITHUB_ACTION_PATH/../../.." && pwd)" # the repository, at the revision that the workflow names
  python -m venv "$RUNNER_TEMP/costmodel"
  # of one version pip takes the one with a local part, torch==X+cpu, before the one with CUDA
  "$RUNNER_TEMP/costmodel/bin/pip" install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" \
    --extra-index-url "$TORCH_INDEX" "$root" pytest
  du -sm "$RUNNER_TEMP/costmodel" | awk '{print "installed costmodel, " $1 " MB"}'
}

predict() {
  local table code=0
  table="$(mktemp)"
  local options=(--costmodel-gate=predict "--costmodel-markdown=$table" "--costmodel-threshold=$THRESHOLD"
    "--costmodel-probability=$PROBABILITY" -p no:cacheprovider
    # the project's tests are not run, so what they need is not here
    --noconftest --override-ini=addopts= --override-ini=required_plugins=)
  [ -z "$DEVICE" ] || options+=("--costmodel-device=$DEVICE")
  [ -z "$MODEL" ] || options+=("--costmodel-model=$MODEL")
  # the event's base commit and not its branch, which may have moved on
  local base="${BASE:-$(event pull_request.base.sha)}"
  [ -z "$base" ] || options+=("--costmodel-base=$base")
  "${PYTHON:-$RUNNER_TEMP/costmodel/bin/python}" -P -m pytest "${options[@]}" || code=$?
  if [ -s "$table" ]; then
    cat "$table" >>"$GITHUB_STEP_SUMMARY"
    comment "$table"
  fi
  if [ "$code" = 1 ] && [ "$FAIL" != true ]; then code=0; fi
  return "$code"
}

# event KEY.KEY...: a value of the event that started the workflow; nothing where it has none.
event() {
  "${PYTHON:-$RUNNER_TEMP/costmodel/bin/python}" - "$1" <<'PYTHON'
import functools, json, os, sys

with open(os.environ["GITHUB_EVENT_PATH"]) as file:
    found = functools.reduce(lambda at, key: (at or {}).get(key), sys.argv[1].split("."), json.load(file))
print("" if found is None else found)
PYTHON
}

# comment FILE: writes the pull request's comment, or the one of an earlier run anew. A token that may not comment, as
# that of a fork's pull request, fails nothing: the table is in the summary.
comment() {
  local number body found
  number="$(event pull_request.number)"
  if [ "$COMMENT" != true ] || [ -z "$number" ]; then return 0; fi
  body="$(printf '%s\n' "$MARK" && cat "$1")"
  local comments="repos/$GITHUB_REPOSITORY/issues/$number/comments"
  if ! found="$(gh api --paginate "$comments" --jq ".[] | select(.body | startswith(\"$MARK\")) | .id")"; then
    echo "::notice title=costmodel::the token may not read this pull request's comments, so the table is in the summary"
    return 0
  fi
  found="${found%%$'\n'*}"
  if [ -z "$found" ] && grep --quiet "nothing to compare" "$1"; then return 0; fi
  if [ -n "$found" ]; then
    gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$found" --raw-field "body=$body" && return
  else
    gh api --silent --method POST "$comments" --raw-field "body=$body" && return
  fi
  echo "::notice title=costmodel::the token may not comment on this pull request, so the table is in the summary"
}

"$1"
