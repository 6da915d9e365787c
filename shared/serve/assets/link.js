// The page of links: the last hour of a device's link as plots, asked of the API of a hub or of an edge.
// All URLs are relative to the page, so that a reverse proxy's prefix works.
"use strict";
(() => {
  const { now, plural, bytes, span, clock, set, show, json, server_status } = window.penstock_common;
  const POLL_MS = 5000;
  const HOUR_MS = 3600_000;
  const TICK_MS = 600_000;
  const MAX_LISTED = 500; // names in the list at once; the filter finds the others
  const HEIGHT = 170;
  const EDGES = { left: 44, right: 10, top: 10, bottom: 22 };

  const $ = (id) => document.getElementById(id);
  const penstock = (window.penstock = { role: null, link: null });
  let devices = [];
  let pointed = null; // the time under the pointer, in all plots

  // --- what is plotted

  const times = (value, factor) => (value === null ? null : value * factor);
  const CLASSES = ["control", "event", "live", "want", "backfill"];
  const PLOTS = [
    {
      id: "rate", title: "Rate", unit: "Mbit/s", least: 1, digits: 2,
      lines: [["paced to", (s) => times(s.rate_bps, 1e-6)], ["sent, with headers", (s) => times(s.sent_bps, 1e-6)], ["media in it", (s) => times(s.media_bps, 1e-6)]],
    },
    {
      id: "loss", title: "Loss and repair", unit: "%", least: 2, digits: 1,
      lines: [["lost", (s) => times(s.loss, 100)], ["parity", (s) => times(s.parity_ratio, 100)], ["sent again", (s) => times(s.resent_ratio, 100)]],
    },
    {
      id: "delay", title: "Delay", unit: "ms", least: 20, digits: 1,
      lines: [["round trip", (s) => s.rtt_ms], ["of it in queues", (s) => s.queueing_delay_ms]],
    },
    { id: "lag", title: "Live lag", unit: "s", least: 1, digits: 2, lines: [["latest stream", (s) => times(s.live_lag_ms, 1e-3)]], hub_only: true },
    { id: "backlog", title: "Backlog", unit: "MB", least: 1, digits: 1, lines: [["not at the hub yet", (s) => s.backlog.bytes / 1e6]] },
    { id: "shares", title: "What the bytes were for", unit: "%", most: 100, digits: 0, stacked: true, lines: CLASSES.map((c) => [c, (s) => (s.shares ? s.shares[c] * 100 : null)]) },
  ];

  const number = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits });
  const mbps = (bps) => `${number(bps / 1e6, bps < 1e7 ? 2 : 1)} Mbit/s`;
  const percent = (share) => `${number(share * 100, 1)} %`;
  const ms = (value) => `${number(value, 1)} ms`;
  const or_none = (value, word) => (value === null || value === undefined ? "–" : word(value));
  const lag = (value) => `${number(value / 1000, 2)} s`;
  const pieces = (backlog) => (backlog.segments ? `${plural(backlog.segments, "segment")}, ${bytes(backlog.bytes)}` : "none");

  // --- asking

  const wanted = () => decodeURIComponent(/^#\/d\/([^/]+)$/.exec(location.hash)?.[1] ?? "");

  async function refresh() {
    try {
      const status = await server_status();
      penstock.role = status.role;
      set($("end"), `${status.role === "edge" ? `Edge ${status.device ?? ""}`.trim() : "Hub"} · ${status.version}`);
      if (status.role === "edge") {
        $("home").href = "./";
        show_link(await json("api/v1/link"));
      } else {
        devices = await json("api/v1/devices");
        show_devices();
        await follow();
      }
      show($("trouble"), "");
    } catch {
      show($("trouble"), "The server does not answer. What you see may be old; trying again.");
    }
  }

  async function poll() {
    if (!document.hidden) await refresh();
    setTimeout(poll, POLL_MS);
  }

  /** Shows the device that the address names, or the first that is connected. */
  async function follow() {
    const name = wanted() || (devices.find((d) => d.session) ?? devices[0])?.name;
    show($("empty"), name ? "" : "No device yet. `hub enroll NAME` invites one.");
    if (!devices.some((d) => d.name === name)) {
      $("device").hidden = true;
      if (name) show($("empty"), `There is no device named ${name}.`);
      return;
    }
    mark(name);
    show_link(await json(`api/v1/devices/${encodeURIComponent(name)}/link`));
  }

  // --- the list of devices

  function show_devices() {
    const connected = devices.filter((d) => d.session).length;
    show($("summary"), `${connected} of ${plural(devices.length, "device")} connected`);
    $("devices").hidden = devices.length < 2;
    $("filter").hidden = devices.length <= 8;
    const needle = $("filter").hidden ? "" : $("filter").value.trim().toLowerCase();
    const listed = devices.filter((d) => d.name.includes(needle)).slice(0, MAX_LISTED);
    const list = $("names");
    const key = JSON.stringify(listed.map((d) => [d.name, Boolean(d.session)]));
    if (list.dataset.shown !== key) {
      list.dataset.shown = key;
      list.replaceChildren(...listed.map((d) => {
        const item = document.createElement("li");
        const link = document.createElement("a");
        link.href = `#/d/${encodeURIComponent(d.name)}`;
        link.dataset.device = d.name;
        link.className = d.session ? "on" : "";
        link.textContent = d.name;
        item.append(link);
        return item;
      }));
    }
    mark(penstock.link?.device);
  }

  function mark(name) {
    for (const link of $("names").querySelectorAll("a")) {
      if (link.dataset.device === name) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  // --- one device

  function show_link(link) {
    penstock.link = link;
    $("device").hidden = false;
    document.title = `${link.device} · Penstock`;
    set($("name"), link.device);
    set($("state"), link.connected ? "connected" : "not connected");
    $("state").className = `state ${link.connected ? "on" : ""}`;
    const hub = penstock.role === "edge" ? "to" : "from";
    set($("facts"), [
      link.peer && `${hub} ${link.peer}`,
      link.since_ms && `for ${span(now() - link.since_ms)}`,
      link.reported_ms && `told by the device ${span(now() - link.reported_ms)} ago`,
      !link.connected && link.samples.length > 0 && `last seen ${clock(link.samples.at(-1).at_ms)}`,
    ].filter(Boolean).join(" · "));
    show_numbers(link.now);
    show_streams(link.streams);
    draw_all();
  }

  function show_numbers(s) {
    const rows = s ? [
      ["Paced to", or_none(s.rate_bps, mbps)],
      ["Arrives", or_none(s.delivery_bps, mbps)],
      ["Lost", or_none(s.loss, percent)],
      ["Round trip", or_none(s.rtt_ms, ms)],
      ["In queues", or_none(s.queueing_delay_ms, ms)],
      ["Datagrams up to", or_none(s.datagram_bytes, (n) => `${number(n, 0)} B`)],
      ["Parity", or_none(s.parity_ratio, percent)],
      ...(penstock.role === "edge" ? [] : [["Rebuilt from it", or_none(s.recovered, (n) => plural(n, "packet"))]]),
      ["Overhead", or_none(s.overhead, (n) => `× ${number(n, 3)}`)],
      ...(penstock.role === "edge" ? [] : [["Live lag", or_none(s.live_lag_ms, lag)]]),
      ["Backlog", s.backlog.segments ? bytes(s.backlog.bytes) : "none"],
    ] : [];
    $("numbers").replaceChildren(...rows.map(([word, value]) => {
      const row = document.createElement("div");
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = word;
      dd.textContent = value;
      row.append(dt, dd);
      return row;
    }));
  }

  function show_streams(streams) {
    $("streams-part").hidden = streams.length === 0;
    $("streams-of").replaceChildren(...streams.map((s) => {
      const row = document.createElement("tr");
      row.append(...[
        s.name,
        penstock.role === "edge" ? (s.live ? "live" : "–") : or_none(s.live_lag_ms, lag),
        pieces(s.backlog),
        or_none(s.backlog.oldest_ms, (t) => clock(t, true)),
        bytes(s.sent_bytes.live + s.sent_bytes.event),
        bytes(s.sent_bytes.backfill + s.sent_bytes.want),
      ].map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return cell;
      }));
      return row;
    }));
  }

  // --- plots

  const svg = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const line_class = (plot, i) => (plot.stacked ? CLASSES[i] : "abc"[i]);

  for (const plot of PLOTS) {
    const root = document.createElement("figure");
    root.className = "card plot";
    root.dataset.plot = plot.id;
    const caption = document.createElement("figcaption");
    const title = document.createElement("h2");
    const unit = document.createElement("small");
    title.textContent = plot.title;
    unit.textContent = ` ${plot.unit}`;
    title.append(unit);
    caption.append(title);
    plot.keys = plot.lines.map(([word], i) => {
      const key = document.createElement("span");
      key.className = `key ${line_class(plot, i)}`;
      const value = document.createElement("b");
      key.append(`${word} `, value);
      caption.append(key);
      return value;
    });
    plot.svg = svg("svg", { role: "img", "aria-label": `${plot.title} in ${plot.unit}, the last hour` });
    root.append(caption, plot.svg);
    plot.root = root;
    $("plots").append(root);
    plot.svg.addEventListener("pointermove", (event) => {
      const box = plot.svg.getBoundingClientRect();
      const share = (event.clientX - box.left - EDGES.left) / (box.width - EDGES.left - EDGES.right);
      point(now() - HOUR_MS * (1 - Math.min(1, Math.max(0, share))));
    });
    plot.svg.addEventListener("pointerleave", () => point(null));
  }

  function point(time) {
    pointed = time;
    draw_all();
  }

  function draw_all() {
    const link = penstock.link;
    if (!link) return;
    for (const plot of PLOTS) {
      plot.root.hidden = Boolean(plot.hub_only) && penstock.role === "edge";
      if (!plot.root.hidden) draw(plot, link);
    }
  }

  /** Round steps so that three to five of them reach the top. */
  function scale(plot, top) {
    const most = plot.most ?? Math.max(plot.least, top);
    const raw = most / 4;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw);
    return { step, top: plot.most ?? Math.ceil(most / step) * step };
  }

  /** Stretches without a gap, as arrays of [time, values]. */
  function stretches(plot, link) {
    const runs = [];
    let before = -Infinity;
    for (const s of link.samples) {
      const values = plot.lines.map(([, of]) => of(s));
      const gap = s.at_ms - before > 2.5 * link.interval_ms || s.at_ms < before;
      if (gap || runs.length === 0) runs.push([]);
      runs.at(-1).push([s.at_ms, values]);
      before = s.at_ms;
    }
    return runs;
  }

  function draw(plot, link) {
    const width = plot.svg.clientWidth || 420;
    const end = now();
    const start = end - HOUR_MS;
    const runs = stretches(plot, link);
    const all = runs.flat();
    const highest = Math.max(0, ...all.flatMap(([, values]) => values.filter((v) => v !== null)));
    const { step, top } = scale(plot, highest);
    const x = (t) => EDGES.left + ((t - start) / HOUR_MS) * (width - EDGES.left - EDGES.right);
    const y = (v) => HEIGHT - EDGES.bottom - (Math.min(v, top) / top) * (HEIGHT - EDGES.top - EDGES.bottom);
    const nodes = [];
    for (let v = 0; v <= top + step / 2; v += step) {
      const at = Math.round(y(v)) + 0.5;
      nodes.push(svg("line", { class: v === 0 ? "axis" : "grid", x1: EDGES.left, x2: width - EDGES.right, y1: at, y2: at }));
      nodes.push(svg("text", { x: EDGES.left - 6, y: at + 4, "text-anchor": "end" }, number(v, 3)));
    }
    for (let t = Math.ceil(start / TICK_MS) * TICK_MS; t <= end; t += TICK_MS) {
      const at = Math.round(x(t)) + 0.5;
      nodes.push(svg("line", { class: "grid", x1: at, x2: at, y1: EDGES.top, y2: HEIGHT - EDGES.bottom }));
      if (at > EDGES.left + 14 && at < width - 18) {
        nodes.push(svg("text", { x: at, y: HEIGHT - 6, "text-anchor": "middle" }, clock(t)));
      }
    }
    const visible = runs.map((run) => run.filter(([t]) => t >= start)).filter((run) => run.length > 0);
    for (const run of visible) nodes.push(...(plot.stacked ? areas(run, x, y, link) : curves(plot, run, x, y)));
    const shown = pointed === null ? all.at(-1) : nearest(all, pointed, link.interval_ms);
    if (pointed !== null) nodes.push(svg("line", { class: "pointer", x1: x(pointed), x2: x(pointed), y1: EDGES.top, y2: HEIGHT - EDGES.bottom }));
    plot.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    plot.svg.replaceChildren(...nodes);
    const old = pointed === null && !link.connected;
    plot.keys.forEach((key, i) => set(key, old ? "" : or_none(shown?.[1][i], (v) => number(v, plot.digits))));
  }

  function nearest(all, time, interval_ms) {
    const close = all.filter(([t]) => Math.abs(t - time) <= interval_ms);
    return close.sort(([a], [b]) => Math.abs(a - time) - Math.abs(b - time))[0];
  }

  function curves(plot, run, x, y) {
    return plot.lines.map((_, i) => {
      let path = "";
      let drawn = false;
      for (const [t, values] of run) {
        if (values[i] === null) { drawn = false; continue; }
        path += `${drawn ? "L" : "M"}${x(t).toFixed(1)} ${y(values[i]).toFixed(1)}`;
        // A point without neighbours is a dot.
        if (!drawn) path += "h0";
        drawn = true;
      }
      return svg("path", { class: `curve ${line_class(plot, i)}`, d: path, "data-points": run.filter(([, v]) => v[i] !== null).length });
    });
  }

  /** One upon the other, each sample as wide as the time it counts. */
  function areas(run, x, y, link) {
    const paths = CLASSES.map(() => "");
    for (const [t, values] of run) {
      let below = 0;
      const [left, right] = [x(t - link.interval_ms), x(t)];
      values.forEach((value, i) => {
        if (!value) return;
        const [low, high] = [y(below).toFixed(1), y(below + value).toFixed(1)];
        paths[i] += `M${left.toFixed(1)} ${low}V${high}H${(right + 0.3).toFixed(1)}V${low}Z`;
        below += value;
      });
    }
    return CLASSES.map((name, i) => svg("path", { class: `area ${name}`, d: paths[i] }));
  }

  // --- start

  $("filter").addEventListener("input", show_devices);
  addEventListener("hashchange", () => refresh());
  addEventListener("resize", draw_all);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  poll();
})();
