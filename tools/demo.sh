#!/usr/bin/env bash
# The whole path on clips that ffmpeg draws, with the embedded pair. Everything lands in demo-out/, made anew each time.
set -euo pipefail
out=demo-out
rm -rf "$out"
mkdir -p "$out/train" "$out/val"
ffmpeg=$(python -c "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")

step() { printf '\n== %s\n' "$*"; }
draw() { "$ffmpeg" -v error -y -f lavfi -i "$2" -frames:v "$3" -pix_fmt yuv420p "$out/$1"; }
run() { printf '$ turbovaed %s\n' "$*"; turbovaed "$@"; }

step "clips, drawn by ffmpeg"
draw train/fractal.mp4   "mandelbrot=size=320x256:rate=25:end_scale=0.05:end_pts=60" 51
draw train/pattern.mp4   "testsrc2=size=320x256:rate=25" 51
draw train/gradients.mp4 "gradients=size=320x256:rate=25:speed=0.05:nb_colors=6:seed=7" 51
draw val/fractal.mp4     "mandelbrot=size=320x256:rate=25:start_scale=0.8:end_scale=0.02:end_pts=90:start_x=-0.75" 34
draw val/plasma.mp4      "gradients=size=320x256:rate=25:speed=0.08:nb_colors=8:seed=3:type=spiral" 34
ls "$out"/*/

step "1. encode clips once"
run cache-latents --data "$out/train" --out "$out/latents"

step "2. distil a student: stopped with Ctrl-C's signal on the way, then the same command resumes"
distill=(distill --teacher tiny --latents "$out/latents" --run "$out/run" --recipe quick --steps 40 --save-every 10 --sample-every 20)
printf '$ turbovaed %s\n' "${distill[*]}"
turbovaed "${distill[@]}" & # a background job of a script ignores SIGINT, so SIGTERM stands in for it
pid=$!
until compgen -G "$out/run/checkpoints/step_*" >/dev/null || ! kill -0 $pid 2>/dev/null; do sleep 0.2; done
kill -TERM $pid 2>/dev/null || true
code=0; wait $pid || code=$?
echo "(stopped: exit code $code)"
run "${distill[@]}"

step "3. how close the embedded student comes to its teacher on clips of its own"
run eval --data "$out/val" --report "$out/report.html"

step "4. reconstruct a video: source, teacher, student side by side"
run reconstruct "$out/val/fractal.mp4" --out "$out/compare.mp4" --compare

step "5. export to ONNX, checked by running it"
run export --format onnx --out "$out/student.onnx"

step "6. how fast it decodes here, beside its teacher"
run bench --repeats 5

step "look at"
cat <<EOF
  $out/compare.mp4                 source | teacher | student
  $out/report.html                 figures, clips with a divider, error maps, in one page
  $out/run/report.html             the curves of a fresh student, and a clip of what it learnt from
  $out/run/samples/                teacher | student | source while it learnt for 40 steps
  $out/run/metrics.jsonl           its losses, step by step
  $out/run/model/                  that student, ready for from_pretrained, with its card
  $out/student.onnx                the embedded student, any frame count and size
EOF
