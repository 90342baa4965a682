#!/usr/bin/env bash
# Runs every fuzz target for a bounded processor time, one after the other, and prints one line for each.
#
#   tools/fuzz.sh [SECONDS PER TARGET, 60] [TARGET...]
#
# The seconds are those that the target spends on a processor, so a run on a busy machine is worth as much as on a quiet one.
# Inputs found interesting stay in fuzz/corpus for the next run; those that crash a target are kept in fuzz/artifacts and
# end the run with status 1. FUZZ_SANITIZER=address adds the address sanitizer (our code has no unsafe; its dependencies do).
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
sanitizer=${FUZZ_SANITIZER:-none}
# Seconds on the clock that one input may take: more for a run at idle priority.
timeout=${FUZZ_TIMEOUT:-10}
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
# Coverage instrumentation is stable; a sanitizer asks for the nightly compiler, or for stable's promise not to mind.
if [ "$sanitizer" != none ] && ! rustc --version | grep -q nightly; then export RUSTC_BOOTSTRAP=1; fi
# Forced on, one code generation unit would triple the time to build; branches that only fuzzing sees are left out.
flags=(--fuzz-dir fuzz --sanitizer "$sanitizer" --codegen-units 16 --no-cfg-fuzzing)
cargo fuzz build "${flags[@]}"
triple=$(rustc -vV | sed -n 's/^host: //p')
built=${CARGO_TARGET_DIR:-fuzz/target}/$triple/release
mkdir -p fuzz/artifacts
failed=0
ticks=$(getconf CLK_TCK)
# Interrupts the process once it has used up its seconds; libFuzzer then says what it did and exits with 72. Leaves in `used` the
# ticks that it had.
interrupt_after() {
  used=0
  local now
  while now=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '{ print $12 + $13 }') && [ -n "$now" ]; do
    used=$now
    if [ "$used" -ge $((seconds * ticks)) ]; then kill -INT "$1" 2>/dev/null || true; return; fi
    sleep 0.2
  done
}
printf '%-20s %12s %10s %8s %8s %8s\n' target executions seconds coverage features corpus
for target in ${*:-$(cargo fuzz list --fuzz-dir fuzz)}; do
  mkdir -p "fuzz/corpus/$target"
  log="fuzz/artifacts/$target.log"
  "$built/$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -timeout="$timeout" -rss_limit_mb=2048 -max_len=8192 \
    -artifact_prefix="fuzz/artifacts/$target-" -print_final_stats=1 >"$log" 2>&1 &
  fuzzer=$!
  interrupt_after "$fuzzer"
  status=0
  wait "$fuzzer" || status=$?
  ended=""
  if [ "$status" -ne 72 ]; then
    ended="  FAILED, see $log"
    failed=1
  fi
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
  last=$(grep -E '^#[0-9]+.*cov: ' "$log" | tail -1 || true)
  field() { sed -n "s/.* $1: \([0-9]*\).*/\1/p" <<<"$last"; }
  printf '%-20s %12s %10s %8s %8s %8s%s\n' "$target" "$(stat number_of_executed_units)" "$((used / ticks))" "$(field cov)" \
    "$(field ft)" "$(sed -n 's/.* corp: \([0-9]*\).*/\1/p' <<<"$last")" "$ended"
done
exit $failed
