// The panel of runs: filters, one figure, curves, two runs side by side.
// Its state is in the URL, so that it survives a reload and can be shared.
const data = JSON.parse(document.getElementById('runs-data').textContent);
const panel = document.getElementById('explore');
const COLORS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00',
                '#56b4e9', '#6f6f6f', '#a33333'];
const MARK = '#view?';
const names = Object.fromEntries(data.numbers);
// Built by DOM calls: a name of a run is never read as HTML.
const make = (tag, attributes = {}, ...children) => {
  const node = tag.startsWith('svg:')
      ? document.createElementNS('http://www.w3.org/2000/svg', tag.slice(4))
      : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'onclick' || name === 'onchange') node[name] = value;
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
};
const known = value => value !== null && value !== undefined;
const text = value => {
  if (!known(value)) return '–';
  if (typeof value !== 'number') return String(value);
  if (Math.abs(value) >= 1e6) return value.toExponential(2);
  return Number.isInteger(value) ? String(value)
                                 : String(Number(value.toPrecision(4)));
};

// --- The state: filters by field, axes, the two runs ---

let view = new URLSearchParams(
    location.hash.startsWith(MARK) ? location.hash.slice(MARK.length) : '');
const set = (name, value) => {
  if (value === '') view.delete(name);
  else view.set(name, value);
  history.replaceState(null, '', MARK + view);
  draw();
};
const valueOf = (run, name) =>
    name in run.fields ? run.fields[name] : run[name];
const inside = (run, name) => {
  const value = valueOf(run, name);
  if (view.has(`${name}=`) && text(value) !== view.get(`${name}=`)) return false;
  if (view.has(`${name}>`) && !(value >= Number(view.get(`${name}>`)))) {
    return false;
  }
  return !view.has(`${name}<`) || value <= Number(view.get(`${name}<`));
};
const shown = () =>
    data.runs.filter(run => data.filters.every(f => inside(run, f.name)));

// --- Controls ---

const select = (label, options, value, change) => make(
    'label', {}, `${label} `, make('select', {
      'aria-label': label, onchange: event => change(event.target.value)},
      ...options.map(([key, name]) => make('option', {
        value: key, selected: key === value ? '' : null}, name))));
const limit = (filter, sign, label) => make('input', {
  type: 'number', step: 'any', placeholder: label,
  'aria-label': `${filter.name} ${label}`,
  value: view.get(filter.name + sign) || '',
  onchange: event => set(filter.name + sign, event.target.value)});

function controls() {
  const fields = data.filters.map(filter => filter.values
      ? select(filter.name, [['', 'all'], ...filter.values.map(
          value => [text(value), text(value)])],
          view.get(`${filter.name}=`) || '',
          value => set(`${filter.name}=`, value))
      : make('label', {}, `${filter.name} `, limit(filter, '>', 'from'),
             limit(filter, '<', 'to')));
  return make('div', {class: 'controls'}, ...fields, make(
      'button', {type: 'button', onclick: () => {
        view = new URLSearchParams();
        set('', '');
      }}, 'show all'));
}

// --- Statistics of the runs shown ---

// Quantile .975 of Student's t (Abramowitz and Stegun, 26.7.5).
function quantile(free) {
  const z = 1.959964;
  return z + (z ** 3 + z) / (4 * free)
      + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * free ** 2)
      + (3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z) / (384 * free ** 3);
}

// A line of score in log2 RankMe by least squares, with the 95 % band of its
// mean; null for fewer than five runs or equal RankMe.
function line(runs) {
  const points = runs.filter(run => known(run.score) && run.rank > 0
      && !run.untrained).map(run => [Math.log2(run.rank), run.score]);
  const n = points.length;
  if (n < 5) return null;
  const mean = i => points.reduce((sum, point) => sum + point[i], 0) / n;
  const [mx, my] = [mean(0), mean(1)];
  const sum = f => points.reduce((total, [x, y]) => total + f(x - mx, y - my), 0);
  const sxx = sum(x => x * x);
  if (sxx < 1e-9) return null;
  const slope = sum((x, y) => x * y) / sxx;
  const sd = Math.sqrt(sum((x, y) => (y - slope * x) ** 2) / (n - 2));
  const t = quantile(n - 2);
  const xs = points.map(point => point[0]);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  const at = [...Array(25).keys()].map(i => low + (high - low) * i / 24);
  const half = x => t * sd * Math.sqrt(1 / n + (x - mx) ** 2 / sxx);
  return {x: at.map(x => 2 ** x), y: at.map(x => my + slope * (x - mx)),
          low: at.map(x => my + slope * (x - mx) - half(x)),
          high: at.map(x => my + slope * (x - mx) + half(x)),
          slope, error: t * sd / Math.sqrt(sxx), runs: n};
}

// --- Figures ---

const [WIDE, HIGH, LEFT, LOW] = [520, 320, 62, 42];

function axes(xs, ys, logX, logY, labelX, labelY) {
  const scale = (values, log, from, to) => {
    const link = log ? Math.log10 : value => value;
    let low = Math.min(...values.map(link)), high = Math.max(...values.map(link));
    const margin = (high - low) * .04 || Math.abs(low) * .05 || .5;
    low -= margin, high += margin;
    const place = value => from + (to - from) * (link(value) - low) / (high - low);
    const ticks = [0, .25, .5, .75, 1].map(part => {
      const value = low + part * (high - low);
      return log ? 10 ** value : value;
    });
    return {place, ticks};
  };
  const x = scale(xs, logX, LEFT, WIDE - 12);
  const y = scale(ys, logY, HIGH - LOW, 10);
  const svg = make('svg:svg', {viewBox: `0 0 ${WIDE} ${HIGH}`, role: 'img',
                               'aria-label': `${labelY} against ${labelX}`},
    make('svg:path', {d: `M${LEFT} 10V${HIGH - LOW}H${WIDE - 12}`}),
    ...x.ticks.map((value, i) => make('svg:text', {
      x: x.place(value), y: HIGH - LOW + 15,
      'text-anchor': i === 4 ? 'end' : 'middle'},
      Number(value.toPrecision(3)).toString())),
    ...y.ticks.map(value => make('svg:text', {
      x: LEFT - 6, y: y.place(value) + 4, 'text-anchor': 'end'},
      Number(value.toPrecision(3)).toString())),
    make('svg:text', {x: (LEFT + WIDE) / 2, y: HIGH - 6,
                      'text-anchor': 'middle'}, labelX),
    make('svg:text', {x: 14, y: (HIGH - LOW) / 2, 'text-anchor': 'middle',
                      transform: `rotate(-90 14 ${(HIGH - LOW) / 2})`}, labelY));
  return {svg, x: x.place, y: y.place};
}

const path = (frame, xs, ys) => xs.map((x, i) =>
    `${i ? 'L' : 'M'}${frame.x(x).toFixed(1)} ${frame.y(ys[i]).toFixed(1)}`)
    .join('');

function band(frame, curve, color, dash) {
  const back = [...curve.x].reverse();
  return [
    make('svg:path', {
      d: path(frame, curve.x, curve.high) + path(
          frame, back, [...curve.low].reverse()).replace('M', 'L') + 'Z',
      style: `fill:${color};opacity:.14;stroke:none`}),
    make('svg:path', {d: path(frame, curve.x, curve.y), style:
      `fill:none;stroke:${color};stroke-width:1.6;stroke-dasharray:${dash}`})];
}

const colorer = runs => {
  const by = view.get('color') || data.color;
  const filter = data.filters.find(one => one.name === by);
  const values = filter && filter.values ? filter.values.map(text)
      : [...new Set(data.runs.map(run => text(valueOf(run, by))))];
  return {by, values, of: run =>
      COLORS[values.indexOf(text(valueOf(run, by))) % COLORS.length]};
};
const pair = () => [view.get('a'), view.get('b')].map(
    id => data.runs.find(run => run.id === id) || null);

function scatter(runs) {
  const [nx, ny] = [view.get('x') || 'rank', view.get('y') || 'score'];
  const points = runs.filter(run => known(run[nx]) && known(run[ny]));
  const note = make('figcaption', {}, `${points.length} of ${runs.length} runs `
      + `have both numbers; open circles are untrained. A click compares. `);
  if (!points.length) return make('figure', {}, note);
  const isLaw = nx === 'rank' && ny === 'score';
  const law = isLaw ? data.law : null;
  const own = isLaw && runs.length < data.runs.length ? line(runs) : null;
  const log = name => data.runs.every(run => !known(run[name]) || run[name] > 0)
      && name !== 'score';
  const ys = points.map(run => run[ny]);
  const frame = axes(points.map(run => run[nx]), ys, log(nx), log(ny),
                     names[nx], names[ny]);
  const color = colorer(runs);
  const clip = curve => {
    const keep = curve.x.map((_, i) => i).filter(i =>
        curve.x[i] >= Math.min(...points.map(run => run[nx]))
        && curve.x[i] <= Math.max(...points.map(run => run[nx])));
    const part = name => keep.map(i => curve[name][i]);
    return {x: part('x'), y: part('y'), low: part('low'), high: part('high')};
  };
  if (law) {
    frame.svg.append(...band(frame, clip(law), 'var(--soft)', 'none'));
    note.append(`Grey: ${data.law.text} `);
  }
  if (own) {
    frame.svg.append(...band(frame, clip(own), 'var(--blue)', '5 3'));
    note.append(`Dashed: a line in log RankMe through the ${own.runs} trained `
        + `runs shown, ${own.slope.toFixed(3)} ± ${own.error.toFixed(3)} of `
        + `score a doubling (95 %). `);
  }
  const [a, b] = pair();
  for (const run of points) {
    const chosen = run === a || run === b;
    const dot = make('svg:circle', {
      cx: frame.x(run[nx]), cy: frame.y(run[ny]), r: chosen ? 7 : 4.2,
      class: 'dot', tabindex: 0,
      style: `fill:${run.untrained ? 'none' : color.of(run)};`
          + `stroke:${chosen ? 'var(--ink)' : color.of(run)}`,
      onclick: () => pick(run.id)},
      make('svg:title', {}, `${run.name} (${run.id}): ${names[nx]} `
          + `${text(run[nx])}, ${names[ny]} ${text(run[ny])}, ${run.state}`));
    frame.svg.append(dot);
  }
  const legend = make('p', {class: 'small'}, `${color.by}: `,
    ...color.values.slice(0, COLORS.length).map((value, i) => make(
        'span', {class: 'key'}, make('span', {style: `color:${COLORS[i]}`},
                                     '● '), `${value} `)));
  return make('figure', {}, frame.svg, legend, note);
}

function curves(runs) {
  const what = view.get('curve') || 'rank';
  const column = what === 'rank' ? 1 : 2;
  const usable = runs.map(run => [run, run.curve.filter(
      row => known(row[column]) && row[0] > 0)]).filter(([, c]) => c.length > 1);
  const note = make('figcaption', {}, `${names[what]} over training steps of `
      + `${usable.length} runs.`);
  if (!usable.length) return make('figure', {}, note);
  const all = usable.flatMap(([, curve]) => curve);
  const frame = axes(all.map(row => row[0]), all.map(row => row[column]), true,
                     true, 'step', names[what]);
  const color = colorer(runs);
  const [a, b] = pair();
  for (const [run, curve] of usable) {
    const chosen = run === a || run === b;
    frame.svg.append(make('svg:path', {
      d: path(frame, curve.map(row => row[0]), curve.map(row => row[column])),
      style: `fill:none;stroke:${color.of(run)};stroke-width:`
          + `${chosen ? 3.4 : 1.2};opacity:${(a || b) && !chosen ? .3 : .85}`},
      make('svg:title', {}, `${run.name} (${run.id})`)));
  }
  return make('figure', {}, frame.svg, note);
}

// --- Two runs ---

// The first click chooses one run, the second the other.
function pick(id) {
  const [a, b] = [view.get('a'), view.get('b')];
  if (a === id) return set('a', '');
  if (b === id) return set('b', '');
  set(!a ? 'a' : 'b', id);
}

function compared() {
  const options = [['', 'none'], ...data.runs.map(
      run => [run.id, `${run.name} (${run.id})`])];
  const [a, b] = pair();
  const out = make('div', {}, make('div', {class: 'controls'},
    ...['a', 'b'].map(name => select(
        `run ${name.toUpperCase()}`, options, view.get(name) || '',
        value => set(name, value)))));
  if (!a || !b) {
    out.append(make('p', {class: 'small'}, 'Two runs chosen here, in the figure '
        + 'or in the table are shown side by side.'));
    return out;
  }
  const fields = [...new Set([...Object.keys(a.fields), ...Object.keys(b.fields)])]
      .filter(name => text(a.fields[name]) !== text(b.fields[name]));
  const rows = [
    ...fields.map(name => [name, a.fields[name], b.fields[name], null]),
    ['state', a.state, b.state, null],
    ...data.numbers.map(([name, label]) => [label, a[name], b[name],
      known(a[name]) && known(b[name]) ? b[name] - a[name] : null])];
  out.append(make('table', {id: 'pair'}, make('thead', {}, make('tr', {},
    ...['', `A: ${a.name}`, `B: ${b.name}`, 'B − A'].map(
        head => make('th', {}, head)))),
    make('tbody', {}, ...rows.map(row => make('tr', {}, ...row.map(
        (cell, i) => make('td', {}, i && (i < 3 || known(cell)) ? text(cell)
                                  : cell || '')))))));
  return out;
}

// --- The table ---

function table(runs) {
  const columns = [['name', 'run'], ['state', 'state'], ...data.numbers];
  const by = view.get('sort') || '', down = view.get('down') === '1';
  const sorted = [...runs];
  if (by) {
    sorted.sort((p, q) => {
      // What is missing stands last, whatever the direction.
      if (!known(p[by]) || !known(q[by])) return known(q[by]) - known(p[by]);
      const order = p[by] > q[by] ? 1 : p[by] < q[by] ? -1 : 0;
      return down ? -order : order;
    });
  }
  const head = columns.map(([name, label]) => make('th', {
    'aria-sort': name === by ? (down ? 'descending' : 'ascending') : null},
    make('button', {type: 'button', onclick: () => {
      view.set('down', name === by && !down ? '1' : '');
      set('sort', name);
    }}, label)));
  const [a, b] = pair();
  return make('details', {open: data.done ? null : ''},
    make('summary', {}, `${runs.length} of ${data.runs.length} runs`),
    make('div', {class: 'wide', tabindex: 0}, make('table', {id: 'shown'},
      make('thead', {}, make('tr', {}, ...head)),
      make('tbody', {}, ...sorted.map(run => make('tr', {
        class: run === a || run === b ? 'own' : run.untrained ? 'off' : null},
        ...columns.map(([name], i) => i ? make('td', {}, text(run[name]))
          : make('td', {}, make('button', {
            type: 'button', title: 'compare', onclick: () => pick(run.id)},
            run.name), ` ${run.id}`))))))));
}

function draw() {
  const runs = shown();
  const axis = data.numbers;
  const choose = (label, name, value, options) => select(
      label, options, view.get(name) || value, chosen => set(name, chosen));
  panel.replaceChildren(
    controls(),
    make('div', {class: 'controls'}, choose('x', 'x', 'rank', axis),
         choose('y', 'y', 'score', axis),
         choose('color', 'color', data.color, data.filters.filter(
             filter => filter.values).map(filter => [filter.name, filter.name])),
         choose('curves', 'curve', 'rank', [['rank', names.rank],
           ['valid_loss', names.valid_loss || 'validation loss']])),
    make('div', {class: 'grid'}, scatter(runs), curves(runs)),
    compared(), table(runs));
}
draw();
window.addEventListener('hashchange', () => {
  if (!location.hash.startsWith(MARK)) return;
  view = new URLSearchParams(location.hash.slice(MARK.length));
  draw();
});

// --- While the sweep runs ---

if (!data.done) {
  const stale = document.getElementById('stale');
  const age = () => (Date.now() / 1000 - data.written) / 60;
  const check = () => {
    if (age() < data.stale) return;
    stale.hidden = false;
    stale.textContent = `Nothing was written here for ${age().toFixed(0)} `
        + 'minutes: the command may have stopped. The same command resumes it.';
  };
  check();
  // A reload, because a page from a disk may not fetch. Not while a control has
  // the focus: its list would close.
  setInterval(() => {
    check();
    if (!['SELECT', 'INPUT'].includes(document.activeElement.tagName)) {
      location.reload();
    }
  }, 1000 * data.every);
}
