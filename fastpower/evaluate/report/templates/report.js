document.body.classList.add("by-entropy");
const each = (what, act) => document.querySelectorAll(what).forEach(act);
const picker = document.getElementById("problem");
const beside = document.getElementById("beside");
let tab = "0";
const tabs = () => Array.from(document.querySelectorAll('[data-problem="' + picker.value + '"] nav button'));
const show = () => {
  const cards = [tab, beside ? beside.value : ""].map(method => picker.value + "-" + method);
  each(".problem", p => { p.hidden = p.dataset.problem !== picker.value; });
  each("article", a => { a.hidden = !cards.includes(a.dataset.card); });
  each("nav button", b => b.classList.toggle("on", b.dataset.tab === cards[0]));
  each(".cards", c => c.classList.toggle("two", c.querySelectorAll("article:not([hidden])").length === 2));
};
const open = problem => {
  picker.value = problem;
  // the method that was looked at, where the problem has an answer of it
  const there = tabs().map(b => b.dataset.tab.split("-")[1]);
  if (!there.includes(tab)) { tab = there[there.length - 1]; }
  show();
};
each("nav button", b => b.addEventListener("click", () => { tab = b.dataset.tab.split("-")[1]; show(); }));
each("[data-open]", b => b.addEventListener("click", () => {
  open(b.dataset.open);
  document.getElementById("answers").scrollIntoView();
}));
// numbers as numbers (0.625 comes before 0.75), texts as texts with numbers in them (p2 before p10)
const compare = (a, b) => {
  const difference = a.trim() === "" || b.trim() === "" ? NaN : Number(a) - Number(b);
  return Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference;
};
each("[data-column]", b => b.addEventListener("click", () => {
  const head = b.closest("th"), body = b.closest("table").tBodies[0];
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  const key = row => row.cells[b.dataset.column].dataset.sort;
  each("[data-column]", other => other.closest("th").removeAttribute("aria-sort"));
  head.ariaSort = sign === 1 ? "ascending" : "descending";
  const rows = Array.from(body.rows);
  rows.sort((one, two) => sign * compare(key(one), key(two)));
  body.append(...rows);
}));
if (picker) {
  picker.addEventListener("change", () => open(picker.value));
  if (beside) { beside.addEventListener("change", show); }
  document.getElementById("colour").addEventListener("change", e => {
    document.body.className = "by-" + e.target.value;
  });
  const methods = tabs();
  tab = methods[methods.length - 1].dataset.tab.split("-")[1];
  open("0");
}
