// Draw the long tables from the data beside the page. Texts are set as text, never as HTML.
"use strict";
(function () {
  const root = document.body.dataset.root;
  const names = window.NAMES;

  function make(tag, className, content) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    for (const item of [].concat(content === undefined ? [] : content)) element.append(item);
    return element;
  }

  function link(address, content, className) {
    const element = make("a", className, content);
    element.href = address;
    return element;
  }

  function short(hotkey) {
    return /^[1-9A-HJ-NP-Za-km-z]{46,49}$/.test(hotkey) ? hotkey.slice(0, 6) + "\u2026" + hotkey.slice(-4) : hotkey;
  }

  function number(value, digits) {
    return value === null ? "-" : value.toFixed(digits === undefined ? 6 : digits);
  }

  function percent(value) {
    return value === 0 ? "0" : (value * 100).toFixed(2) + "%";
  }

  function hotkey(index) {
    const [name, file] = names.hotkeys[index];
    const element = link(root + "hotkeys/" + file + ".html", short(name), "key");
    element.title = name;
    return element;
  }

  function dataset(index) {
    const [text, address] = names.datasets[index];
    if (!address || !/^https?:\/\//.test(address)) return text;
    const element = link(address, text);
    element.rel = "noopener noreferrer nofollow";
    return element;
  }

  function pill(index) {
    const code = names.verdicts[index];
    const kinds = { record: "good", confirmed: "flat", dropped: "flat", in_progress: "busy", waiting: "busy" };
    return make("span", "pill " + (kinds[code] || "bad"), names.labels[index]);
  }

  function round(validator, index) {
    const own = names.validators[validator];
    return link(root + "rounds/" + own.files[index] + ".html", "block " + own.blocks[index]);
  }

  // columns: [title, class, function of a row]; the first one is the row's header.
  function table(caption, columns, rows) {
    const head = make("tr");
    for (const [title, className] of columns) {
      const cell = make("th", className, title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = make("tbody");
    for (const row of rows) {
      const line = make("tr");
      columns.forEach(([, className, content], index) => {
        const cell = make(index ? "td" : "th", className, content(row));
        if (!index) cell.scope = "row";
        line.append(cell);
      });
      body.append(line);
    }
    return make("table", "", [make("caption", "", caption), make("thead", "", head), body]);
  }

  function command(validator, index, digest, file) {
    const own = names.validators[validator];
    const source = file || own.sources[index] + " --receipt " + digest;
    return "subnet score --verify " + source + own.flags;
  }

  function receipt(file, digest) {
    if (!digest) return "-";
    if (!file) return make("span", "dim", digest.slice(0, 8) + ", in the round file");
    const element = link(root + "receipts/" + file, file);
    element.download = file;
    return element;
  }

  // A button that shows the command in a line of its own below.
  function verify(validator, index, digest, file) {
    if (!digest) return "-";
    const button = make("button", "", "Verify");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    let line = null;
    button.addEventListener("click", () => {
      if (!line) {
        const text = make("pre", "command", make("code", "", command(validator, index, digest, file)));
        text.tabIndex = 0;
        const parts = file ? [make("p", "", ["Download ", receipt(file, digest), ", then run where it is:"])] : [];
        const needsFolder = names.validators[validator].flags.includes("MODEL_FOLDER");
        const hint = needsFolder ? [make("p", "", "MODEL_FOLDER: put your folder with the model's weights there.")] : [];
        const cell = make("td", "opened", [...parts, text, ...hint]);
        cell.colSpan = button.closest("tr").children.length;
        line = make("tr", "", cell);
        line.hidden = true;
        button.closest("tr").after(line);
      }
      line.hidden = !line.hidden;
      button.setAttribute("aria-expanded", String(!line.hidden));
    });
    return button;
  }

  const drawn = {
    rounds() {
      const own = names.validators[window.HISTORY.validator];
      const rows = own.blocks.map((block, index) => index).reverse();
      return table("Every round, newest first.", [
        ["Round", "", (index) => round(window.HISTORY.validator, index)],
        ["Best loss", "num", (index) => number(own.best[index])],
        ["Evaluations", "num", (index) => String(own.evaluations[index])],
        ["Paid hotkeys", "num", (index) => String(own.paid[index])],
      ], rows);
    },

    table() {
      return table("Every hotkey with a commitment, as in the round file.", [
        ["Hotkey", "", (row) => hotkey(row[0])],
        ["Dataset", "wide data", (row) => dataset(row[1])],
        ["Verdict", "", (row) => pill(row[2])],
        ["Evaluations", "num wide", (row) => String(row[3])],
        ["Loss", "num", (row) => number(row[4])],
        ["Error", "num wide", (row) => number(row[5])],
        ["Score", "num wide", (row) => number(row[6], 4)],
        ["Credit", "num wide", (row) => number(row[7], 4)],
        ["Weight", "num", (row) => percent(row[8])],
      ], window.ROUND.rows);
    },

    "round-evaluations"() {
      return table("The evaluations that were planned for this round. Those that ended after its weights were made count from the next round on.", [
        ["Hotkey", "", (run) => hotkey(run[0])],
        ["Number", "num wide", (run) => String(run[1])],
        ["Seed", "num", (run) => String(run[2])],
        ["Loss", "num", (run) => number(run[3])],
        ["Receipt", "wide", (run) => receipt(run[5], run[4])],
      ], window.ROUND.evaluations);
    },

    evaluations(place) {
      const own = window.HOTKEY[Number(place.dataset.view)];
      return table("Every evaluation that this validator did, newest first. Dataset and seed determine the loss: who evaluates them again on a like machine gets the same number.", [
        ["Round", "", (run) => round(own.validator, run[0])],
        ["Number", "num wide", (run) => String(run[1])],
        ["Seed", "num", (run) => String(run[2])],
        ["Loss", "num", (run) => number(run[3])],
        ["Receipt", "wide", (run) => receipt(run[5], run[4])],
        ["Check", "", (run) => verify(own.validator, run[0], run[4], run[5])],
      ], own.evaluations);
    },
  };

  const empty = {
    "round-evaluations": "None was planned for this round.",
    evaluations: "This validator did none for this hotkey.",
  };

  for (const place of document.querySelectorAll("[data-table]")) {
    const content = drawn[place.dataset.table](place);
    const text = empty[place.dataset.table];
    place.append(text && !content.tBodies[0].rows.length ? make("p", "empty", text) : content);
  }

  if (window.drawCharts) window.drawCharts({ make, number, percent, short, table });
})();
