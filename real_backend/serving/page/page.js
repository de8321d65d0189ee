// Asks the control plane once a second and draws the last minutes. The token, where one is needed, stays in this tab.
"use strict";

const KEPT = 300;
const COLORS = ["#0b6fb8", "#c4560a", "#23823a", "#8e3fa8", "#5b5b5b", "#a07400"];
const PLOTS = [
  { title: "EMB's share (alpha; dashed: target)", of: (node) => node.alpha, dashed: (node) => node.target_alpha, top: 1, digits: 2 },
  { title: "P99 ms, from arrival to answer", of: (node) => node.sojourn_p99_ms, digits: 1 },
  { title: "KV hit rate", of: (node) => node.kv_hit_rate, top: 1, digits: 2 },
  { title: "EMB hit rate", of: (node) => node.emb_hit_rate, top: 1, digits: 2 },
  { title: "Requests/s", of: (node) => node.arrival_rate_rps, digits: 0 },
];
const history = [];
let token = "";

function element(name, parent, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function drawn(name, parent, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

for (const plot of PLOTS) {
  const figure = element("figure", document.getElementById("plots"));
  element("figcaption", figure, plot.title);
  plot.svg = drawn("svg", figure, { viewBox: "0 0 300 100", preserveAspectRatio: "none", role: "img", "aria-label": plot.title });
  plot.now = element("div", figure, "");
}

function line(svg, values, top, color, dashed) {
  const known = values.map((value, k) => [k, value]).filter(([, value]) => Number.isFinite(value));
  const step = 300 / Math.max(1, history.length - 1);
  const points = known.map(([k, value]) => `${k * step},${100 - (95 * value) / top}`).join(" ");
  const look = { points, fill: "none", stroke: color, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke" };
  drawn("polyline", svg, dashed ? { ...look, "stroke-dasharray": "4 3" } : look);
}

function draw() {
  const nodes = history[history.length - 1].length;
  for (const plot of PLOTS) {
    plot.svg.replaceChildren();
    const all = history.flat().map(plot.of).filter(Number.isFinite);
    const top = plot.top || Math.max(1e-9, ...all);
    for (let k = 0; k < nodes; k++) {
      const color = COLORS[k % COLORS.length];
      line(plot.svg, history.map((row) => plot.of(row[k] || {})), top, color, false);
      if (plot.dashed) line(plot.svg, history.map((row) => plot.dashed(row[k] || {})), top, color, true);
    }
    const last = history[history.length - 1].map((node, k) => `node ${k}: ${figure(plot.of(node), plot.digits)}`);
    plot.now.textContent = `${last.join(", ")} (top of the plot: ${figure(top, plot.digits)})`;
  }
}

function figure(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits) : "–";
}

function show({ service, controller }) {
  history.push(service.nodes);
  if (history.length > KEPT) history.shift();
  draw();
  const body = document.getElementById("nodes");
  body.replaceChildren();
  service.nodes.forEach((node, k) => {
    const row = element("tr", body);
    const of = controller.nodes[k];
    element("td", row, node.node);
    const state = element("td", row, (node.ready ? "ready" : "away") + (node.restarts ? `, ${node.restarts} restarts` : ""));
    if (!node.ready) state.className = "bad";
    element("td", row, of.level === "policy" ? of.mode : `${of.mode} (${of.level})`);
    for (const [name, digits] of [["alpha", 3], ["target_alpha", 3], ["kv_hit_rate", 3], ["emb_hit_rate", 3], ["arrival_rate_rps", 1], ["sojourn_mean_ms", 2], ["sojourn_p99_ms", 2]]) element("td", row, figure(node[name], digits));
  });
  const named = (policy) => (policy ? policy.name + (policy.sha256 ? ` (${policy.sha256.slice(0, 12)})` : "") : "none");
  document.getElementById("policy").textContent = `Policy ${named(controller.policy)}; former ${named(controller.former)}.` + (controller.killed ? " The kill switch is on." : "");
  const counts = Object.entries(controller.interventions).map(([reason, count]) => `${reason} ${count}`);
  document.getElementById("guard").textContent = counts.length ? `The guard's decisions: ${counts.join(", ")}.` : "";
  const notes = document.getElementById("notes");
  notes.replaceChildren();
  for (const note of controller.notes.slice(-5)) element("li", notes, note);
  document.getElementById("said").textContent = `Profile ${service.profile}; ${service.users} users, ${service.items} items remembered.`;
}

async function ask() {
  try {
    const answer = await fetch("control/status", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
    if (answer.status === 401) {
      token = window.prompt("The control plane's token:") || "";
      if (!token) return void (document.getElementById("said").textContent = "A token is required; load the page again.");
    } else {
      show(await answer.json());
    }
  } catch (error) {
    document.getElementById("said").textContent = "The service does not answer.";
  }
  window.setTimeout(ask, 1000);
}

ask();
