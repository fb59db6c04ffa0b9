"use strict";
// Draws each clip from one video that holds source, teacher, student and their errors, so both sides are always the same frame.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const data = (id) => JSON.parse(document.getElementById(id).textContent);
  root.classList.add("js");

  // Light, dark, or the system's setting. A page opened from a file may have no storage.
  const theme = document.getElementById("theme");
  const kept = { get: () => { try { return localStorage.getItem("turbovaed-theme"); } catch { return null; } },
                 set: (value) => { try { localStorage.setItem("turbovaed-theme", value); } catch { /* this page only */ } } };
  const paint = (value) => { if (value === "auto") delete root.dataset.theme; else root.dataset.theme = value; };
  theme.hidden = false;
  const before = all("input", theme).find((input) => input.value === kept.get());
  if (before) { before.checked = true; paint(before.value); }
  theme.addEventListener("change", (event) => { paint(event.target.value); kept.set(event.target.value); });

  const clips = data("clip-data");
  for (const article of all("[data-clip]")) {
    const clip = clips[Number(article.dataset.clip)];
    const video = one("video", article), frame = one(".frame", article), handle = one(".handle", article);
    const over = one(".over", article), under = one(".under", article), errors = all(".error", article);
    const divider = one(".divider", article), play = one(".play", article), speed = one(".speed", article);
    const number = one(".frame-number", article), numberText = one(".frame-text", article);
    const left = one(".choose.left", article), right = one(".choose.right", article);
    const words = (select) => select.selectedOptions[0].text;

    // The video may advance between two reads: read one frame, and draw every part from that.
    const sheet = document.createElement("canvas");
    const put = (canvas, part) => {
      const [x, y, width, height] = clip.parts[part], context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(sheet, x, y, width, height, 0, 0, canvas.width, canvas.height);
    };
    const look = () => {
      if (sheet.width !== video.videoWidth) [sheet.width, sheet.height] = [video.videoWidth, video.videoHeight];
      sheet.getContext("2d").drawImage(video, 0, 0);
    };
    const draw = () => {
      if (video.readyState < 2) return;
      look();
      put(over, left.value);
      put(under, right.value);
      for (const canvas of errors) put(canvas, canvas.dataset.part);
    };
    const tell = (time) => {
      const shown = Math.min(clip.frames, Math.max(1, Math.floor(time * clip.fps + 0.5) + 1));
      number.value = shown;
      numberText.textContent = `${shown} / ${clip.frames}`;
    };
    const split = () => {
      const share = Number(divider.value);
      over.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
      handle.style.left = `${share}%`;
      for (const [side, select, isSeen] of [["left", left, share > 15], ["right", right, share < 85]]) {
        const tag = one(`.tag.${side}`, article);
        tag.textContent = words(select);
        tag.hidden = !isSeen;
      }
      divider.setAttribute("aria-valuetext", `${words(left)} ${share} %, ${words(right)} ${100 - share} %`);
      over.setAttribute("aria-label", `${words(left)}, left of the divider`);
      under.setAttribute("aria-label", `${words(right)}, right of the divider`);
    };

    video.controls = false;
    video.tabIndex = -1;
    if (video.requestVideoFrameCallback) {
      const next = (_, meta) => { draw(); if (!video.paused) tell(meta.mediaTime); video.requestVideoFrameCallback(next); };
      video.requestVideoFrameCallback(next);
    } else {
      const next = () => { draw(); if (!video.paused) tell(video.currentTime - 0.5 / clip.fps); requestAnimationFrame(next); };
      video.addEventListener("play", next);
    }
    for (const event of ["loadeddata", "seeked"]) video.addEventListener(event, draw);

    const showState = () => {
      play.toggleAttribute("data-playing", !video.paused);
      one("span", play).textContent = video.paused ? "Play" : "Pause";
      play.setAttribute("aria-label", play.getAttribute("aria-label").replace(/^(Play|Pause)/, video.paused ? "Play" : "Pause"));
    };
    for (const event of ["play", "pause"]) video.addEventListener(event, showState);
    play.addEventListener("click", () => { if (video.paused) video.play(); else video.pause(); });
    const pace = () => { video.playbackRate = Number(speed.value); };
    speed.addEventListener("change", pace);
    pace();
    number.addEventListener("input", () => {
      video.pause();
      video.currentTime = (Number(number.value) - 0.5) / clip.fps;
      numberText.textContent = `${number.value} / ${clip.frames}`;
    });
    for (const select of [left, right]) select.addEventListener("change", () => { draw(); split(); });
    divider.addEventListener("input", split);

    // The pointer moves the divider from anywhere on the picture; the range input holds the value, the focus and the keys.
    const follow = (event) => {
      const box = frame.getBoundingClientRect();
      divider.value = Math.round(100 * (event.clientX - box.left) / box.width);
      split();
    };
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      frame.setPointerCapture(event.pointerId);
      divider.focus({ preventScroll: true, focusVisible: false });
      follow(event);
    });
    frame.addEventListener("pointermove", (event) => { if (frame.hasPointerCapture(event.pointerId)) follow(event); });
    split();
    draw();
  }

  const curves = data("curve-data"), cursor = document.getElementById("cursor");
  if (cursor) {
    const panels = all("[data-panel]");
    const read = () => {
      const i = Number(cursor.value);
      document.getElementById("cursor-text").textContent = curves.stretches[i];
      cursor.setAttribute("aria-valuetext", curves.stretches[i]);
      panels.forEach((panel, p) => {
        const point = curves.panels[p][i], hair = one(".hair", panel), dot = one(".dot", panel);
        one(".reading", panel).textContent = point ? point[2] : "none";
        const x = point ? point[0] : -9;
        hair.setAttribute("x1", x);
        hair.setAttribute("x2", x);
        dot.setAttribute("cx", x);
        dot.setAttribute("cy", point ? point[1] : -9);
      });
    };
    cursor.parentElement.hidden = false;
    cursor.addEventListener("input", read);
    for (const [p, panel] of panels.entries()) {
      const drawing = one("svg", panel);
      drawing.addEventListener("pointermove", (event) => {
        const box = drawing.getBoundingClientRect(), x = 360 * (event.clientX - box.left) / box.width;
        let nearest = 0;
        curves.panels[p].forEach((point, i) => {
          const best = curves.panels[p][nearest];
          if (point && (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x))) nearest = i;
        });
        cursor.value = nearest;
        read();
      });
    }
    read();
  }
})();
