(function () {
  'use strict';
  var FAR = 6; // tokens: beyond this distance a cosine counts as far
  var CROSS = '<svg class="cross" viewBox="-13 -13 26 26" aria-hidden="true">' +
    '<path d="M-12 0H-2M2 0H12M0-12V-2M0 2V12" stroke="#141414" stroke-width="6"/>' +
    '<path d="M-12 0H-2M2 0H12M0-12V-2M0 2V12" stroke="#fff" stroke-width="2.4"/></svg>';

  function bytes(text) {
    var raw = atob(text), found = new Uint8Array(raw.length);
    for (var k = 0; k < raw.length; k++) found[k] = raw.charCodeAt(k);
    return found;
  }

  // int8 numbers of every token, one after the other, and the factor that gives a token its length
  function unpacked(map) {
    var values = bytes(map.values), scales = bytes(map.scales);
    return { values: new Int8Array(values.buffer), scales: new Float32Array(scales.buffer) };
  }

  function affinity(features, token, width) {
    var count = features.scales.length, values = features.values, start = token * width;
    var found = new Float32Array(count);
    for (var t = 0; t < count; t++) {
      var sum = 0, at = t * width;
      for (var k = 0; k < width; k++) sum += values[start + k] * values[at + k];
      found[t] = sum * features.scales[token] * features.scales[t];
    }
    return found;
  }

  // mean cosine within FAR tokens (without the token itself) and beyond; null where there is none
  function levels(values, row, column, rows, columns) {
    var sums = [0, 0], counts = [0, 0];
    for (var r = 0; r < rows; r++) {
      for (var c = 0; c < columns; c++) {
        var distance = Math.hypot(r - row, c - column);
        if (distance === 0) continue;
        var part = distance <= FAR ? 0 : 1;
        sums[part] += values[r * columns + c];
        counts[part]++;
      }
    }
    return sums.map(function (sum, k) { return counts[k] ? sum / counts[k] : null; });
  }

  function lowest(maps) {
    var all = [];
    maps.forEach(function (map) { for (var k = 0; k < map.length; k++) all.push(map[k]); });
    all.sort(function (a, b) { return a - b; });
    return Math.min(0.9, Math.floor(all[Math.floor(0.01 * (all.length - 1))] * 10) / 10);
  }

  function number(value) {
    return value === null ? '–' : (Math.round(value * 100) / 100 + 0).toFixed(2).replace('-', '−');
  }

  var data = JSON.parse(document.getElementById('data').textContent);
  var rows = data.grid[0], columns = data.grid[1], table = bytes(data.colors);
  var kept = {}, state = { picture: 0, row: rows >> 1, column: columns >> 1, maps: [], low: data.low };
  var panels = [], byId = function (id) { return document.getElementById(id); };

  function loaded(picture) {
    if (!kept[picture]) kept[picture] = data.pictures[picture].maps.map(unpacked);
    return kept[picture];
  }

  function paint(canvas, values, low) {
    var context = canvas.getContext('2d'), image = context.createImageData(columns, rows);
    for (var t = 0; t < values.length; t++) {
      var share = Math.min(1, Math.max(0, (values[t] - low) / (1 - low))), at = 3 * Math.round(share * 255);
      image.data.set([table[at], table[at + 1], table[at + 2], 255], 4 * t);
    }
    context.putImageData(image, 0, 0);
  }

  function token() { return state.row * columns + state.column; }

  function update() {
    state.maps = loaded(state.picture).map(function (map) { return affinity(map, token(), data.width); });
    state.low = byId('range').value === 'token' ? lowest(state.maps) : data.low;
    byId('low').textContent = (state.low + 0).toFixed(1).replace('-', '−');
    var said = 'Token in row ' + (state.row + 1) + ' of ' + rows + ', column ' + (state.column + 1) + ' of ' + columns + '.';
    panels.forEach(function (panel, k) {
      var cross = panel.spot.querySelector('.cross');
      cross.style.left = 100 * (state.column + 0.5) / columns + '%';
      cross.style.top = 100 * (state.row + 0.5) / rows + '%';
      if (k === 0) return;
      var found = levels(state.maps[k - 1], state.row, state.column, rows, columns);
      var mean = 'near ' + number(found[0]) + ', far ' + number(found[1]);
      paint(panel.canvas, state.maps[k - 1], state.low);
      panel.means = mean;
      panel.numbers.textContent = mean;
      said += ' ' + data.encoders[k - 1] + ': ' + mean + '.';
    });
    byId('status').textContent = said;
  }

  function move(row, column) {
    state.row = Math.min(rows - 1, Math.max(0, row));
    state.column = Math.min(columns - 1, Math.max(0, column));
    update();
  }

  function show(picture) {
    state.picture = picture;
    byId('picture').value = String(picture);
    panels.forEach(function (panel) { panel.image.src = data.pictures[picture].photo; });
    panels[0].spot.setAttribute('aria-label', data.pictures[picture].name + ': arrow keys move the token');
    panels[0].image.alt = data.pictures[picture].name;
    update();
  }

  function under(panel, event) {
    var box = panel.spot.getBoundingClientRect();
    return [Math.floor((event.clientY - box.top) / box.height * rows), Math.floor((event.clientX - box.left) / box.width * columns)];
  }

  function step(name, far) {
    var by = far ? 5 : 1;
    if (name === 'left') move(state.row, state.column - by);
    else if (name === 'right') move(state.row, state.column + by);
    else if (name === 'up') move(state.row - by, state.column);
    else if (name === 'down') move(state.row + by, state.column);
    else if (name === 'home') move(state.row, 0);
    else if (name === 'end') move(state.row, columns - 1);
    else if (name === 'pageup') show(Math.max(0, state.picture - 1));
    else if (name === 'pagedown') show(Math.min(data.pictures.length - 1, state.picture + 1));
    else return false;
    return true;
  }

  function pointed(panel, event) {
    var at = under(panel, event), inside = at[0] >= 0 && at[0] < rows && at[1] >= 0 && at[1] < columns;
    panels.slice(1).forEach(function (other, k) {
      other.numbers.textContent = other.means + (inside ? '; at the pointer ' + number(state.maps[k][at[0] * columns + at[1]]) : '');
    });
  }

  function listen(panel) {
    panel.spot.addEventListener('click', function (event) {
      var at = under(panel, event);
      move(at[0], at[1]);
      panels[0].spot.focus({ preventScroll: true });
    });
    panel.spot.addEventListener('pointermove', function (event) {
      if (event.pointerType !== 'mouse') return;
      if (event.buttons & 1) {
        var at = under(panel, event);
        if (at[0] !== state.row || at[1] !== state.column) move(at[0], at[1]);
      }
      pointed(panel, event);
    });
    panel.spot.addEventListener('pointerleave', update);
  }

  function build(name, k) {
    var figure = document.createElement('figure'), caption = document.createElement('figcaption');
    var spot = document.createElement('div'), image = document.createElement('img');
    caption.textContent = name;
    spot.className = 'spot';
    spot.style.aspectRatio = columns + ' / ' + rows;
    image.draggable = false;
    image.alt = '';
    spot.appendChild(image);
    var panel = { spot: spot, image: image, means: '' };
    if (k === 0) {
      spot.tabIndex = 0;
      spot.setAttribute('role', 'application');
      spot.setAttribute('aria-describedby', 'status');
      spot.addEventListener('keydown', function (event) {
        var name = event.key.toLowerCase().replace('arrow', '');
        if (!event.ctrlKey && !event.altKey && !event.metaKey && step(name, event.shiftKey)) event.preventDefault();
      });
    } else {
      panel.canvas = document.createElement('canvas');
      panel.canvas.width = columns;
      panel.canvas.height = rows;
      panel.canvas.setAttribute('role', 'img');
      panel.canvas.setAttribute('aria-label', 'Affinity map of ' + name);
      spot.appendChild(panel.canvas);
    }
    spot.insertAdjacentHTML('beforeend', CROSS);
    panel.numbers = document.createElement('span');
    panel.numbers.className = 'numbers';
    figure.append(caption, spot, panel.numbers);
    byId('panels').appendChild(figure);
    listen(panel);
    panels.push(panel);
  }

  ['picture'].concat(data.encoders).forEach(build);
  data.pictures.forEach(function (picture, k) {
    var option = document.createElement('option');
    option.value = String(k);
    option.textContent = picture.name;
    byId('picture').appendChild(option);
  });
  byId('pictures').hidden = data.pictures.length < 2;
  byId('pictures').style.display = data.pictures.length < 2 ? 'none' : '';
  byId('picture').addEventListener('change', function () { show(Number(this.value)); });
  byId('range').addEventListener('change', update);
  byId('mix').addEventListener('input', function () {
    var opacity = String(1 - Number(this.value) / 100);
    panels.slice(1).forEach(function (panel) { panel.canvas.style.opacity = opacity; });
  });
  document.querySelectorAll('[data-step]').forEach(function (button) {
    button.addEventListener('click', function (event) { step(button.dataset.step, event.shiftKey); });
  });
  var ramp = byId('ramp').getContext('2d'), line = ramp.createImageData(256, 1);
  for (var k = 0; k < 256; k++) line.data.set([table[3 * k], table[3 * k + 1], table[3 * k + 2], 255], 4 * k);
  ramp.putImageData(line, 0, 0);
  byId('tool').hidden = false;
  show(0);
  window.affinityPage = { state: state, data: data };
})();
