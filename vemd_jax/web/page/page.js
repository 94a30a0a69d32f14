// Sends files to /predict and shows the results.

const COLOURS = ['#2a9d8f', '#e76f51', '#4f7cc4', '#e9b949', '#9b5de5',
  '#d1495b', '#6a994e', '#8d99ae'];
const SVG = 'http://www.w3.org/2000/svg';
const at = (id) => document.getElementById(id);
const blur = at('blur');
let about = {classes: [], decodes: false, max_megabytes: 200};

const ready = fetch('health').then((r) => r.json()).then((answer) => {
  about = answer;
  at('model').textContent =
    `Model ${about.model}, step ${about.step}: ${about.classes.join(', ')}`;
  at('limits').textContent = `Photographs, or the first ${about.max_seconds} ` +
    `seconds of videos; up to ${about.max_megabytes} MB`;
});

function element(name, attributes = {}, text = '') {
  const node = ['svg', 'rect', 'line', 'polyline', 'text', 'circle', 'title']
    .includes(name) ? document.createElementNS(SVG, name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  if (text) node.textContent = text;
  return node;
}

const percent = (p) => `${(100 * p).toFixed(0)} %`;
const colour = (name) =>
  COLOURS[Math.max(0, about.classes.indexOf(name)) % COLOURS.length];

function bars(probabilities) {
  return Object.entries(probabilities).map(([name, p]) => {
    const row = element('div', {class: 'bar'});
    const picture = element('svg', {
      viewBox: '0 0 100 10', preserveAspectRatio: 'none', height: 12,
      'aria-hidden': true});
    picture.append(
      element('rect', {width: 100, height: 10, fill: 'currentColor',
        opacity: 0.08}),
      element('rect', {width: 100 * p, height: 10, fill: colour(name)}));
    row.append(element('span', {}, name), picture,
      element('span', {}, percent(p)));
    return row;
  });
}

// Probabilities over time, one line per class.
function course(timeline) {
  const [width, height, left, right, top, bottom] = [600, 220, 48, 10, 10, 24];
  const first = timeline[0].seconds;
  const span = Math.max(timeline.at(-1).seconds - first, 1e-3);
  const x = (t) => left + (width - left - right) * (t - first) / span;
  const y = (p) => height - bottom - (height - top - bottom) * p;
  const picture = element('svg', {viewBox: `0 0 ${width} ${height}`,
    role: 'img', 'aria-label': 'Probabilities over time'});
  for (const p of [0, 0.5, 1]) {
    picture.append(
      element('line', {class: 'axis', x1: left, x2: width - right, y1: y(p),
        y2: y(p)}),
      element('text', {x: left - 6, y: y(p) + 4, 'text-anchor': 'end'},
        percent(p)));
  }
  picture.append(
    element('text', {x: left, y: height - 6}, `${first.toFixed(1)} s`),
    element('text', {x: width - right, y: height - 6, 'text-anchor': 'end'},
      `${timeline.at(-1).seconds.toFixed(1)} s`));
  for (const name of Object.keys(timeline[0].probabilities)) {
    const points = timeline.map(
      (m) => [x(m.seconds), y(m.probabilities[name])]);
    const line = element('polyline', {stroke: colour(name),
      points: points.map((p) => p.map((v) => v.toFixed(1)).join(',')).join(' ')});
    line.append(element('title', {}, name));
    picture.append(line);
    if (points.length < 40) {
      picture.append(...points.map(([cx, cy]) =>
        element('circle', {cx, cy, r: 2.5, fill: colour(name)})));
    }
  }
  return picture;
}

async function ask(file, wish) {
  if (file.size > about.max_megabytes * 1e6) {
    throw new Error(`the file is too large, expected at most ` +
      `${about.max_megabytes} MB`);
  }
  const response = await fetch('predict?' + new URLSearchParams(wish), {
    method: 'POST', body: file,
    headers: {'Content-Type': 'application/octet-stream'}});
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function card(name) {
  const node = at('card').content.cloneNode(true).querySelector('article');
  node.querySelector('h2').textContent = name;
  at('results').prepend(node);
  return node;
}

function tell(node, answer) {
  const p = answer.probabilities[answer.label];
  node.querySelector('.state').textContent =
    `${answer.label}, ${percent(p)}` + (answer.timeline ? ', mean over time' : '')
    + (answer.cut ? `; the first ${about.max_seconds} seconds` : '');
  node.querySelector('.bars').replaceChildren(...bars(answer.probabilities));
  if (answer.timeline) {
    node.querySelector('.course').replaceChildren(course(answer.timeline));
  }
}

function show(node, pictures) {
  node.querySelector('.shown').replaceChildren(...pictures.map((one) => {
    const figure = element('figure');
    figure.append(element('img', {src: one.image, alt: ''}));
    const said = [];
    if (one.seconds != null) said.push(`${one.seconds.toFixed(1)} s`);
    if (one.hidden === 'all') {
      said.push('no face found, the whole image is pixelated');
    } else if (one.hidden) said.push(`${one.hidden} faces hidden`);
    if (said.length) figure.append(element('figcaption', {}, said.join(', ')));
    return figure;
  }));
}

// The local file, without the server.
function preview(node, file) {
  const kind = file.type.startsWith('video') ? 'video' : 'img';
  const address = URL.createObjectURL(file);
  const picture = element(kind, {src: address});
  if (kind === 'video') picture.controls = true;
  else picture.alt = '';
  picture.addEventListener('error', () => picture.remove());
  node.querySelector('.shown').replaceChildren(picture);
}

async function judge(file) {
  await ready;
  const node = card(file.name);
  const state = node.querySelector('.state');
  const hidden = blur.checked;
  if (!hidden) preview(node, file);
  state.textContent = 'predicting …';
  try {
    const answer = await ask(file, hidden ? {blur: 1} : {});
    tell(node, answer);
    if (hidden) show(node, answer.pictures);
    const heat = node.querySelector('.heat');
    heat.hidden = !about.decodes;
    heat.addEventListener('click', async () => {
      heat.disabled = true;
      const before = state.textContent;
      state.textContent = 'predicting …';
      try {
        const wish = {heatmap: 1};
        if (hidden || blur.checked) wish.blur = 1;
        show(node, (await ask(file, wish)).pictures);
        heat.hidden = true;
        state.textContent = before;
      } catch (error) {
        state.textContent = error.message;
        heat.disabled = false;
      }
    });
  } catch (error) {
    node.querySelector('.shown').replaceChildren();
    state.textContent = error.message;
    state.classList.add('error');
  }
}

at('files').addEventListener('change', (event) => {
  for (const file of event.target.files) judge(file);
  event.target.value = '';
});

const drop = at('drop');
for (const kind of ['dragenter', 'dragover']) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add('over');
  });
}
for (const kind of ['dragleave', 'drop']) {
  drop.addEventListener(kind, () => drop.classList.remove('over'));
}
addEventListener('dragover', (event) => event.preventDefault());
addEventListener('drop', (event) => {
  event.preventDefault();
  for (const file of event.dataTransfer.files) judge(file);
});

// ------------------------------------------------------------------ camera

let stream = null;
let watching = null;

blur.addEventListener('change', () =>
  at('view').classList.toggle('hidden', blur.checked));

at('camera').addEventListener('click', async () => {
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: true});
    at('view').srcObject = stream;
    at('live').hidden = false;
  } catch (error) {
    card('Camera').querySelector('.state').textContent =
      `no camera: ${error.message}`;
  }
});

async function shot(name) {
  const view = at('view');
  const canvas = element('canvas');
  [canvas.width, canvas.height] = [view.videoWidth, view.videoHeight];
  canvas.getContext('2d').drawImage(view, 0, 0);
  const data = await new Promise((done) => canvas.toBlob(done, 'image/jpeg'));
  return new File([data], name, {type: 'image/jpeg'});
}

at('shot').addEventListener('click', async () =>
  judge(await shot(new Date().toLocaleTimeString())));

at('watch').addEventListener('click', async () => {
  if (watching) return unwatch();
  const node = card('Camera');
  const start = performance.now();
  const timeline = [];
  watching = {};
  const mine = watching;
  at('watch').setAttribute('aria-pressed', 'true');
  while (watching === mine) {
    const next = performance.now() + 1000;
    try {
      const answer = await ask(await shot('camera'), {});
      timeline.push({...answer, seconds: (performance.now() - start) / 1000});
      if (timeline.length > 120) timeline.shift();
      tell(node, answer);
      if (timeline.length > 1) {
        node.querySelector('.course').replaceChildren(course(timeline));
      }
    } catch (error) {
      node.querySelector('.state').textContent = error.message;
    }
    await new Promise((done) =>
      setTimeout(done, Math.max(0, next - performance.now())));
  }
});

function unwatch() {
  watching = null;
  at('watch').setAttribute('aria-pressed', 'false');
}

at('stop').addEventListener('click', () => {
  unwatch();
  for (const track of stream.getTracks()) track.stop();
  at('live').hidden = true;
});
