"""How report.html looks: paper and ink, by day and by night, from a phone to a desk."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf6; --card: #ffffff; --ink: #22211f; --quiet: #6a675f; --line: #e5e1d6;
  --train: #34689c; --val: #b8481d; --good: #3d7a3d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181a; --card: #1e1f22; --ink: #e8e5dd; --quiet: #a09c92; --line: #33343a;
    --train: #86b4e2; --val: #f09467; --good: #8cc98c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: clamp(1.25rem, 5vw, 4rem) clamp(1rem, 4vw, 2rem) 5rem;
  max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1, h2, .figure b {
  font-family: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia,
    "DejaVu Serif", serif;
  font-weight: 600; text-wrap: balance;
}
h1 { margin: 0; font-size: clamp(1.7rem, 6vw, 2.6rem); line-height: 1.15; overflow-wrap: anywhere; }
h2 { margin: 3.25rem 0 1rem; font-size: 1.35rem; line-height: 1.3; }
p { margin: 0 0 1rem; max-width: 42rem; }
.quiet, .axis, .tick, .status { color: var(--quiet); }
.status { margin: .4rem 0 2rem; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1.25rem 1.5rem;
  margin: 0 0 2rem; padding: 1.25rem 0; border: solid var(--line); border-width: 1px 0;
}
.figure b {
  display: block; font-size: 1.75rem; line-height: 1.2; font-variant-numeric: tabular-nums;
}
.figure span, .label { color: var(--quiet); font-size: .875rem; line-height: 1.4; }
.figure span { display: block; margin-top: .25rem; }
.label { margin: 0 0 .3rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.command {
  display: block; margin: 0 0 1rem; padding: .7rem 1rem; overflow-wrap: anywhere;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  font-size: .875rem; user-select: all;
}
.chart { position: relative; height: clamp(15rem, 48vw, 24rem); margin-left: 2.1rem; }
.chart svg {
  display: block; width: 100%; height: 100%; overflow: visible;
  border-left: 1px solid var(--line); border-bottom: 1px solid var(--line);
}
.chart svg * { fill: none; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.train { stroke: var(--train); stroke-width: 1.75; }
.val { stroke: var(--val); stroke-width: 1.75; }
.dot { stroke: var(--val); stroke-width: 7; stroke-linecap: round; }
.dot.best { stroke-width: 12; }
.rung { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 5; opacity: .8; }
.tick, .rung-label { position: absolute; font-size: .8rem; line-height: 1; white-space: nowrap; }
.tick {
  right: calc(100% + .5rem); transform: translateY(-50%); font-variant-numeric: tabular-nums;
}
.rung-label { right: 0; transform: translateY(calc(-100% - .3rem)); color: var(--quiet); }
.rung-label b { font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums; }
.axis {
  display: flex; justify-content: space-between; max-width: none; margin: .4rem 0 1rem 2.1rem;
  font-size: .8rem; font-variant-numeric: tabular-nums;
}
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; font-size: .875rem; }
.legend i {
  display: inline-block; width: 1.5rem; height: 0; margin-right: .5rem; vertical-align: middle;
  border-top: 2px solid;
}
.legend .t { color: var(--train); } .legend .v { color: var(--val); }
.legend .r { color: var(--quiet); border-top-style: dotted; }
.legend span { color: var(--ink); }
ol { margin: 0; padding: 0; list-style: none; }
.samples li {
  position: relative; margin-left: .3rem; padding: 0 0 2rem 1.6rem;
  border-left: 1px solid var(--line);
}
.samples li:last-child { padding-bottom: 0; }
.samples li::before {
  content: ""; position: absolute; left: -.3rem; top: .5rem; width: .55rem; height: .55rem;
  border-radius: 50%; background: var(--val);
}
.samples h3 { margin: 0 0 .35rem; font-size: .875rem; font-weight: 600; }
.samples h3 span { margin-left: .75rem; font-weight: 400; color: var(--quiet); }
.samples blockquote {
  margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 1.05rem/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "DejaVu Serif",
    serif;
}
.samples em { font-style: normal; color: var(--quiet); }
dl {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem 1.5rem;
  margin: 0 0 1.5rem;
}
dt { color: var(--quiet); font-size: .875rem; }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--quiet); }
details pre {
  padding: 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.5;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
}
:focus-visible { outline: 2px solid var(--train); outline-offset: 3px; }
@media print { details { display: none; } }
"""
