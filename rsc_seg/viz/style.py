"""The report's look: one table of colours for light and dark, the style sheet and the small script."""

# name: (light, dark); s0..s5 are series colours, which dashes tell apart as well
COLORS: dict[str, tuple[str, str]] = {
    "paper": ("#fdfcfa", "#15171a"),
    "panel": ("#f4f2ed", "#1e2125"),
    "ink": ("#1d1f21", "#e4e2dd"),
    "soft": ("#5c5f63", "#a5a7aa"),
    "rule": ("#dcd8cf", "#34383d"),
    "link": ("#1a5a96", "#84b9ee"),
    "note": ("#8a4b08", "#f0b66a"),
    "s0": ("#1766a8", "#6fb1ef"),
    "s1": ("#b8430f", "#ff9864"),
    "s2": ("#14724f", "#57c596"),
    "s3": ("#8a3f9a", "#d49ae6"),
    "s4": ("#7d6200", "#dcbd4c"),
    "s5": ("#5c5f63", "#b4b6b9"),
}

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 ui-serif,Charter,"Iowan Old Style",Georgia,serif}
.wide,header,footer{max-width:1080px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .25rem;font-weight:600;overflow-wrap:anywhere}
h2{font-size:1.3rem;line-height:1.3;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--rule);
font-weight:600}
h3{font-size:1.05rem;margin:2rem 0 .25rem;font-weight:600}
p,li,dd{overflow-wrap:anywhere}
p,ul,ol{max-width:44rem;margin:.5rem 0}
a{color:var(--link)}
.sub{color:var(--soft);margin:0}
.top{display:flex;gap:16px;justify-content:space-between;align-items:flex-start}
button{font:13px/1 system-ui,sans-serif;color:var(--ink);background:var(--panel);border:1px solid var(--rule);
border-radius:6px;padding:11px 12px;cursor:pointer;white-space:nowrap}
button:focus-visible,a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);
outline-offset:2px}
.origin{margin:1.25rem 0;padding:.75rem 1rem;background:var(--panel);border-left:4px solid var(--note);
max-width:46rem}
.origin h2{font-size:1rem;margin:0;padding:0;border:0;color:var(--note)}
.origin p{margin:.25rem 0 0}
nav ol{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:0 1.25rem;max-width:none;
font:15px/2.1 system-ui,sans-serif}
.scroll{overflow-x:auto;margin:.75rem 0 .25rem;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font:15px/1.4 system-ui,sans-serif;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .8rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule);white-space:nowrap}
thead th{font-weight:600;vertical-align:bottom;border-bottom:2px solid var(--rule)}
th:first-child{text-align:left;white-space:normal;position:sticky;left:0;background:var(--paper);min-width:8.5rem;
max-width:20rem;
padding-left:0;font-weight:400}
thead th:first-child{font-weight:600}
tr.reference th,tr.reference td{background:var(--panel)}
tr.reference th:first-child{padding-left:.5rem}
.unit,.delta,.spread,.fine{color:var(--soft);font-size:.86em}
.delta{display:block}
thead .unit{font-weight:400;display:block}
.fine{font-family:system-ui,sans-serif;line-height:1.5}
.fine li{margin:.2rem 0}
sup a{text-decoration:none;padding:0 .15em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1.5rem 2rem;margin:1rem 0}
figure{margin:0;min-width:0}
.charts figcaption{font:600 15px/1.4 system-ui,sans-serif;margin-bottom:.5rem}
.charts figcaption .fine{display:block;font-weight:400}
svg.chart{display:block;width:100%;max-width:480px;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}
svg .tick{fill:var(--soft)}
svg .grid{stroke:var(--rule);stroke-width:1}
svg .axis{stroke:var(--ink);stroke-width:1.2}
svg .series{fill:none;stroke-width:2;stroke-linejoin:round}
svg .raw{fill:none;stroke-width:1;opacity:.3}
svg .area{fill-opacity:.14;stroke-width:1.8;stroke-linejoin:round}
.strip{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,var(--cell,240px)));gap:10px 12px;
margin:.6rem 0 1.4rem}
.strip .span{grid-column:span 2}
.strip img{display:block;width:100%;height:auto;border-radius:2px;background:var(--panel)}
.strip img.tokens{image-rendering:pixelated}
.strip figcaption{font:14px/1.35 system-ui,sans-serif;margin-bottom:.3rem;overflow-wrap:anywhere}
.strip .fine{display:block;margin-top:.3rem;font-size:13px}
.scale{display:flex;flex-wrap:wrap;gap:.2rem .6rem;align-items:center;font:13px/1.4 system-ui,sans-serif;
color:var(--soft);margin:.6rem 0}
.scale .ramp{width:180px;height:12px;border-radius:2px}
details{margin:.75rem 0}
summary{cursor:pointer;font:15px/2 system-ui,sans-serif}
pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--panel);padding:.8rem 1rem;
border-radius:4px;
overflow-x:auto;margin:.5rem 0}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.3rem 1.2rem;
font:15px/1.5 system-ui,sans-serif;max-width:60rem}
dt{color:var(--soft)}dd{margin:0}
footer{margin-top:3rem;padding-bottom:3rem;color:var(--soft);font:13px/1.5 system-ui,sans-serif}
@media (max-width:640px){
h1{font-size:1.4rem}h2{margin-top:2.25rem}
.strip{grid-template-columns:repeat(min(var(--columns),2),minmax(0,1fr));gap:10px}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}
th,td{padding:.45rem .6rem}th:first-child{max-width:9.5rem}
}
@media print{button,nav{display:none}details>*{display:block}.strip,figure{break-inside:avoid}}
"""

SCRIPT = """
(function(){
var root=document.documentElement,button=document.getElementById('theme');
var system=window.matchMedia('(prefers-color-scheme: dark)');
function dark(){return root.dataset.theme?root.dataset.theme==='dark':system.matches}
function label(){button.textContent=dark()?'Light':'Dark';
button.setAttribute('aria-label','Switch to '+(dark()?'light':'dark')+' colours')}
button.hidden=false;label();
button.addEventListener('click',function(){root.dataset.theme=dark()?'light':'dark';label()});
system.addEventListener('change',label);
})();
"""


def _variables(which: int) -> str:
    return (
        ";".join(f"--{name}:{pair[which]}" for name, pair in COLORS.items())
        + f";color-scheme:{('light', 'dark')[which]}"
    )


def style_sheet() -> str:
    """The whole style sheet: light, dark where the system asks for it, and either by the button."""
    series = "".join(
        f"svg .s{k}{{stroke:var(--s{k})}}svg .dot.s{k},svg .area.s{k}{{fill:var(--s{k})}}" for k in range(6)
    )
    return (
        f":root{{{_variables(0)}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{_variables(1)}}}}}"
        f":root[data-theme=dark]{{{_variables(1)}}}" + _RULES + series
    )
