#!/bin/sh
# Fuzzes what the native helper reads from its channels: scripts/fuzz-helper.sh [seconds, default 60]
# A finding is written to the current directory as crash-*, timeout-* or oom-*, and the exit status is not 0.
set -eu

seconds=${1:-60}
case $seconds in
  '' | *[!0-9]*)
    echo "usage: $0 [seconds], not '$seconds'" >&2
    exit 2
    ;;
esac
source_dir=$(cd "$(dirname "$0")/../src/guest" && pwd)
clang=$(command -v clang || true)
if [ -z "$clang" ]; then
  echo "fuzzing needs clang with libFuzzer; install it with: apt-get install clang libclang-rt-dev" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! "$clang" -g -O1 -std=gnu11 -DHUTCH_FUZZ -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  -Wall -Wextra -I"$source_dir" -o "$work/fuzz" \
  "$source_dir/fuzz.c" "$source_dir/control.c" "$source_dir/stdin.c" "$source_dir/logs.c" "$source_dir/files.c" "$source_dir/files-write.c" \
  "$source_dir/files-read.c" "$source_dir/files-open.c" "$source_dir/files-remove.c" "$source_dir/tree.c" "$source_dir/search.c" "$source_dir/search-tree.c" "$source_dir/watch.c" "$source_dir/copy.c" \
  "$source_dir/pattern.c" "$source_dir/literal.c" "$source_dir/descent.c" "$source_dir/sockets.c" "$source_dir/frame.c" "$source_dir/handover.c" "$source_dir/unpack.c" "$source_dir/dial.c" "$source_dir/privileges.c" \
  "$source_dir/failure.c" -lpthread 2>"$work/errors"; then
  cat "$work/errors" >&2
  if grep -q clang_rt "$work/errors"; then
    echo "libFuzzer is missing; install it with: apt-get install libclang-rt-dev (or libclang-rt-14-dev)" >&2
  fi
  exit 1
fi
mkdir "$work/corpus"
seed() { printf "$2" >"$work/corpus/$1"; }
# What each mode begins with: a reader's chunk, SPAWN, SIGNAL, STAT, WRITE with DATA and END, RENAME.
seed reader '\000\014\000\000\000\000\023\000\000\000\001\000\000\000'
seed signal '\001\022\001\017\000\000\000\002'
seed spawn '\001\020\001\000\000\000\000\000\000\000\000\000\000\000\000\120\000\030\000\000\000\001\000\000\000\000\000\001\000\000\000/\001\000\000\000\002\000\000\000ls\000\000\000\000'
seed control '\002\000\001\000\001\001\020\020\000\000\000\050\001\010\000\000\000\000\000\000\000\000\010\001'
seed stat '\003\100\006\000\001\000\000\000/'
seed write '\003\106\012\377\377\377\377\002\000\000\000/f\105\003abc\000\000\104\026\000\000\000\000\000\000\000\000\377\377\377\377\377\377\377\377\002\000\000\000/f'
seed mkdir '\003\110\013\355\001\000\000\001\002\000\000\000/d\102\006\002\000\000\000/d\111\007\001\002\000\000\000/d'
seed rename '\003\112\014\002\000\000\000/f\002\000\000\000/g'
seed inplace '\003\106\012\377\377\377\377\002\000\000\000/h\105\003abc\000\000'
seed tree '\003\111\007\001\002\000\000\000/d\114\006\002\000\000\000/l'
seed follow '\002\000\001\000\001\001\000\001\001\010\100\001\000\000\000\000\000\000\000\000\020\001\377\020\001\377\010\001'
seed open '\003\132\026\000\000\000\000\000\000\000\000\000\000\020\000\000\000\000\000\002\000\000\000/h'
# WALK of /, SEARCH of / for x without a program for paths, COPY of /d, WATCH of /, CHOWN of /f.
none='\000\000\000\000\000\000'
seed walk "\003\120\040\016\000\000\000\000\012\000\000\000\001\000\000\000/$none$none$none"
seed search "\003\122\104\020\005\000\000\000\001\000\000\000\001\000\000\000\001\000\000\000/$none$none$none\001\000\002\000\000\000\000\000\000\000\000\000\000\000\001xx\000\000\000\000\000\001\000\000\000\001\000\000\000x\000"
seed copy '\003\127\015\000\002\000\000\000/d\002\000\000\000/k'
seed watch "\003\125\014\001\001\000\000\000/$none"
seed chown '\003\130\017\001\000\000\000\000\000\000\000\000\002\000\000\000/f'
seed pattern '\005\002\001\000\000\000\000\001aa\000\000xxaxx'
seed literal '\006\000\002\000\001\002\000\001\000abcabcabc'
seed unpack '\007\000\005\001\000\000\000d\001\015\003\000\000\000\000\000\000\000\001\000\000\000f\002\013\000\000\000\000\000\000\000\000abc\011\005\001\000\000\000w\012\005\001\000\000\000d'
seed raw '\004\006\000\000\000\100\000\000\000\001\000\000\000\000\001\000\000\000/'

# The target changes its root directory: everything it is given stands relative to where it starts.
mkdir "$work/root" "$work/logs"
found=0
(cd "$work" && ASAN_OPTIONS=detect_leaks=0 ./fuzz -max_total_time="$seconds" -max_len=8192 -timeout=20 \
  -rss_limit_mb=1024 -use_value_profile=1 -print_final_stats=1 -artifact_prefix=./ corpus 2>log) || found=1
if [ "$found" = 1 ]; then
  tail -60 "$work/log" >&2
  for artifact in "$work"/crash-* "$work"/timeout-* "$work"/oom-*; do
    if [ -e "$artifact" ]; then cp "$artifact" . && echo "kept ./$(basename "$artifact")" >&2; fi
  done
  exit 1
fi
grep -E 'cov:|^stat::number_of_executed_units' "$work/log" | tail -2
