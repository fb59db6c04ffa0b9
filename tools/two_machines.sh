#!/usr/bin/env bash
# The commands of docs/guides/scale.md on two machines that share a disk and a cable and nothing else: two namespaces, each with a network, a
# host name and process ids of its own. On generated clips, with the embedded teacher. Needs root on Linux, no network. Everything lands
# in two-machines-out/, made anew each time; ends with 1 at whatever was not as it should be.
set -euo pipefail
out=two-machines-out
spaces=turbovaed-$$  # the prefix of their names
export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=cable
declare -A pids=()

[ "$(id -u)" = 0 ] || { echo "error: network namespaces need root" >&2; exit 1; }
ffmpeg=$(python -c "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*"; tail -n 20 "$out"/log/* 2>/dev/null || true; exit 1; }

clean_up() {
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  for machine in 1 2; do ip netns delete "$spaces-$machine" 2>/dev/null || true; done
}
trap clean_up EXIT

# start MACHINE COMMAND...: begin it there. What it says goes to log/, and finish waits for it.
start() {
  local machine=$1; shift
  printf 'machine%s$ %s\n' "$machine" "$*"
  ip netns exec "$spaces-$machine" unshare --uts --ipc --pid --fork --mount-proc --kill-child \
    sh -c 'hostname "machine$0"; mount --bind "$1" /etc/hosts; shift; exec "$@"' "$machine" "$out/hosts" "$@" >"$out/log/$machine.out" 2>"$out/log/$machine.err" &
  pids[$machine]=$!
}

# finish MACHINE EXIT_CODE: wait for what was started there; it has to end so.
finish() {
  local code=0
  wait "${pids[$1]}" || code=$?
  unset "pids[$1]"
  [ "$code" = "$2" ] || fail "machine$1 ended with $code, not $2"
}

here() { printf '$ %s\n' "$*"; "$@" 2>"$out/log/here.err" || fail "$*"; }
number() { python -c "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "$@"; }
newest() { { compgen -G "$out/run/checkpoints/step_*/manifest.json" || true; } | sort | tail -1 | grep -o 'step_[0-9]*' | tr -dc 0-9 | sed 's/^0*//'; }

# wait_for WHAT TEST...: until the test holds, two minutes at most.
wait_for() {
  local what=$1 tries=1200; shift
  until "$@"; do
    tries=$((tries - 1))
    { [ $tries -gt 0 ] && kill -0 "${pids[@]}" 2>/dev/null; } || fail "$what did not happen"
    sleep 0.1
  done
}

began=$SECONDS
rm -rf "$out"
mkdir -p "$out/log" "$out/clips" "$out/val"

step "two machines and a cable"
for machine in 1 2; do
  ip netns add "$spaces-$machine"
  ip -n "$spaces-$machine" link set lo up
done
ip link add name cable netns "$spaces-1" type veth peer name cable netns "$spaces-2"
for machine in 1 2; do
  ip -n "$spaces-$machine" address add "10.77.0.$machine/30" dev cable
  ip -n "$spaces-$machine" link set cable up
done
printf '127.0.0.1 localhost\n10.77.0.1 machine1\n10.77.0.2 machine2\n' >"$out/hosts"
ip -n "$spaces-1" -brief address

step "clips, drawn by ffmpeg"
draw() { "$ffmpeg" -v error -y -f lavfi -i "$2" -frames:v "$3" -pix_fmt yuv420p "$out/$1"; }
for number in $(seq 10 21); do
  draw "clips/pattern-$number.mp4" "testsrc2=size=80x64:rate=25,hue=h=${number}0" 36
  draw "clips/fractal-$number.mp4" "mandelbrot=size=80x64:rate=25:start_scale=0.$number:end_scale=0.01:end_pts=90" 36
done
draw val/pattern.mp4 "testsrc2=size=80x64:rate=25,hue=h=77" 9
draw val/fractal.mp4 "mandelbrot=size=80x64:rate=25:start_scale=0.9:end_scale=0.02:end_pts=90:start_x=-0.75" 9
echo "$(ls "$out/clips" | wc -l) videos"

step "a. cache-latents: both machines on one folder, nobody tells them who does what"
cache=(turbovaed cache-latents --teacher tiny --data "$out/clips" --frames 9 --size 64 --device cpu --json)
start 1 "${cache[@]}" --out "$out/latents"
start 2 "${cache[@]}" --out "$out/latents"
both_at_it() { grep -qs machine1 "$out"/latents/parts/*.lock && grep -qs machine2 "$out"/latents/parts/*.lock; }
wait_for "work on both machines" both_at_it
signal_all() { kill "-$1" $(ip netns pids "$spaces-1") $(ip netns pids "$spaces-2") 2>/dev/null || true; } # an ffmpeg may be gone
signal_all STOP # they would be done before anybody has looked
here turbovaed cache-latents --status --out "$out/latents" | tee "$out/log/status"
signal_all CONT
grep -q machine1 "$out/log/status" && grep -q machine2 "$out/log/status" || fail "--status does not name both machines"
finish 1 0
finish 2 0
by_first=$(number "$out/log/1.out" encoded)
by_second=$(number "$out/log/2.out" encoded)
[ "$by_first" -gt 0 ] && [ "$by_second" -gt 0 ] || fail "one of the machines encoded nothing"
turbovaed cache-latents --status --json --out "$out/latents" >"$out/log/status"
clips=$(number "$out/log/status" clips)
[ "$clips" = $((by_first + by_second)) ] || fail "$by_first and $by_second clips were encoded, the cache has $clips"
echo "machine1 encoded $by_first clips, machine2 $by_second; the cache has $clips, none of them twice"

step "b. a Slurm array of two tasks, each into a folder of its own, and one cache made of both"
for machine in 1 2; do
  start $machine env SLURM_ARRAY_TASK_ID=$machine SLURM_ARRAY_TASK_COUNT=2 SLURM_ARRAY_TASK_MIN=1 \
    "${cache[@]}" --out "$out/latents-$machine"
done
finish 1 0
finish 2 0
grep -h shard "$out"/log/[12].err
here turbovaed cache-latents --merge "$out/latents-1" --merge "$out/latents-2" --out "$out/merged"
printf '$ diff -r %s %s\n' "$out/latents" "$out/merged"
diff -r --exclude='*.lock' "$out/latents" "$out/merged" || fail "the merged cache differs"
echo "the same $clips clips, the same bytes"

step "c. distill with torchrun over the cable; machine2 is switched off on the way"
distill=(distill --teacher tiny --latents "$out/latents" --run "$out/run" --recipe quick --save-every 4 --sample-every 0 --device cpu)
on_both() {
  for machine in 1 2; do
    start $machine torchrun --nnodes 2 --nproc-per-node 1 --rdzv-id scale --rdzv-backend c10d --rdzv-endpoint machine1:29400 \
      -m -- turbovaed_cli "${distill[@]}" --batch-size 1 --steps 44
  done
}
saved_behind() { [ "$(newest)" -gt "$1" ] 2>/dev/null; }
on_both
wait_for "a checkpoint behind step 4" saved_behind 4
{ kill -KILL "${pids[2]}"; finish 2 137; } 2>/dev/null # else the shell tells of it
finish 1 1 # torchrun's own code for a worker that failed
grep -h -A1 "^error:" "$out/log/1.err" || fail "machine1 does not say what happened"
after_kill=$(newest)
echo "(machine2 was killed; the newest checkpoint is that of step $after_kill)"

step "   the same command again; then SIGTERM to every process of machine2, as a preempted Slurm step gets it"
on_both
wait_for "a checkpoint behind step $after_kill" saved_behind "$after_kill"
everything=$(ip netns pids "$spaces-2")
kill -TERM $everything
finish 1 1
finish 2 1
grep -q "resumed from step $after_kill" "$out/log/1.err" || fail "it did not go on from step $after_kill"
grep -h -A1 "^error:" "$out/log/1.err" | head -2
stopped=$(newest)
grep -q "stopped after step $stopped of 44" "$out/log/1.err" || fail "the step it stopped at was not saved"

step "   and again, to the end"
steps_done() { [ "$(wc -l <"$out/run/metrics.jsonl")" -ge "$1" ]; }
sent() { ip netns exec "$spaces-1" cat /sys/class/net/cable/statistics/tx_bytes; }
on_both
wait_for "step 18" steps_done 18
before=$(sent)
wait_for "step 38" steps_done 38
per_step=$((($(sent) - before) / 20))
finish 1 0
finish 2 0
cat "$out/log/1.out"
grep -q "resumed from $stopped" "$out/log/1.out" || fail "it did not go on from step $stopped"
gradient=$(($(tail -c +9 "$out/run/model/"*.safetensors | wc -c)))
echo "machine1 sent $per_step bytes a step; a ring of two sends each gradient once, and the weights take $gradient"
[ $per_step -gt $((gradient * 9 / 10)) ] && [ $per_step -lt $((gradient * 5 / 4)) ] || fail "that is something else"
here turbovaed eval --model "$out/run" --data "$out/val" --frames 9 --size 64 --metrics psnr,ssim --device cpu

step "d. the same run for more steps: two processes on one machine, one process with twice the batch, two started without torchrun"
start 1 turbovaed "${distill[@]}" --steps 50 --batch-size 1 --nproc 2
finish 1 0
grep "resumed from 44" "$out/log/1.out" || fail "--nproc 2 did not go on"
start 2 turbovaed "${distill[@]}" --steps 56 --batch-size 2
finish 2 0
grep "resumed from 50" "$out/log/2.out" || fail "one process did not go on"
for machine in 1 2; do
  start $machine env RANK=$((machine - 1)) WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=machine1 MASTER_PORT=29500 \
    turbovaed "${distill[@]}" --steps 62 --batch-size 1
done
finish 1 0
finish 2 0
grep "resumed from 56" "$out/log/1.out" || fail "two processes with RANK and WORLD_SIZE did not go on"
[ "$(wc -l <"$out/run/metrics.jsonl")" = 62 ] || fail "metrics.jsonl does not have 62 steps"

step "all as it should be, in $((SECONDS - began)) s"
cat <<END
  $clips clips cached by two machines at once ($by_first and $by_second), and by a Slurm array and --merge: the same bytes
  62 steps of one run: machine2 killed behind step $after_kill, stopped by a signal behind step $stopped, step 44 by torchrun on both; then --nproc 2, one process
  of twice the batch, and both machines without torchrun
END
