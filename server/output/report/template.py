"""The report's page. A module, not a file of its own kind: Flower's app bundle takes no HTML."""

from jinja2 import Environment, StrictUndefined

__all__ = ["PAGE"]

PAGE = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined).from_string("""
{% macro table(it) %}
<div class="wide"><table><thead><tr>
{%- for cell in it.header %}<th{% if loop.index0 in it.text %} class=text{% endif %}>{{ cell }}{% endfor -%}
</tr></thead><tbody>
{% for row in it.rows %}
<tr{% if row[0] in it.bold %} class=changed{% endif %}>
{%- for cell in row %}<td{% if loop.index0 in it.text %} class=text{% endif %}>{{ cell }}{% endfor -%}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro plot(name, caption) %}
<figure><img alt="{{ caption }}" src="data:image/svg+xml;base64,{{ plots[name] }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endmacro %}
<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{{ run }}</title><style>
:root { --ink: #1f2328; --quiet: #656d76; --line: #d8dee4; --good: #1a7f37; --bad: #b00020 }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 66rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
.quiet { color: var(--quiet) } .failed, .bad { color: var(--bad) } .finished { color: var(--good) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
           margin: 1.2rem 0 }
.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem }
.figures b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.figures span { color: var(--quiet); font-size: .85rem }
.wide { overflow-x: auto; margin-top: .6rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th { color: var(--quiet); font-weight: 600 }
td { white-space: nowrap } td.text { white-space: normal; overflow-wrap: anywhere }
th:first-child, td:first-child, td.text, th.text { text-align: left }
tr.changed td { font-weight: 600 }
img { max-width: 100% }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 0 2rem }
@media print {
  @page { size: A4; margin: 14mm }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0 }
  h2 { break-after: avoid } figure, table tr, .figures div { break-inside: avoid }
  .wide { overflow: visible } table { font-size: 8pt } th, td { padding: .15rem .4rem }
  thead { display: table-header-group }
}
figure { margin: .8rem 0 0 } figcaption { color: var(--quiet); font-size: .85rem }
</style></head><body>
<h1>Federated run {{ run }}</h1>
<p class=quiet><b class="{{ status }}">{{ status }}</b> · {{ period }}</p>
{% if reason %}
<p class="{{ "quiet" if status == "finished" else "bad" }}">{{ reason }}</p>
{% endif %}
{% if results %}
<div class="figures">
{% for value, label in results.figures %}
<div><b>{{ value }}
{%- if loop.first %} <small class="{{ "finished" if results.change < 0 else "bad" }}">
{{- "%+.1f" | format(results.change) }} %</small>{% endif -%}
</b><span>{{ label }}</span></div>
{% endfor %}
</div><p class=quiet>Measured on {{ results.frames }} held-out frames ({{ results.mode }}).</p>
{% else %}
<p>No round has been evaluated yet.</p>
{% endif %}
<h2>Is it learning?</h2>
{{ plot("policy_loss", "Policy loss on held-out data, round by round; lower is better.") }}
{% if "predicted_actions" in plots %}
{{ plot("predicted_actions", "Actions of a held-out episode, recorded and predicted.") }}
{% endif %}
{% if simulation %}
<h2>Does it do the task?</h2>
<p class=quiet>The policy drives the simulated SO-101; every row has the same seeds. The return is how far an
episode came, 1 for a success.</p>
{{ table(simulation.table) }}
{% if simulation.videos %}
<figure>
{% for video in simulation.videos %}
<video controls muted loop width=300 src="data:video/mp4;base64,{{ video }}"></video>
{% endfor %}
<figcaption>The policy after round {{ simulation.round }}: cameras top and wrist.</figcaption></figure>
{% endif %}
{% endif %}
<h2>Rounds</h2>
{{ table(rounds) }}
<h2>Nodes</h2>
{{ table(nodes) }}
{% if not_covered %}
<p class=quiet>{{ not_covered }}</p>
{% endif %}
{{ table(facts) }}
<div class="columns">
{{ plot("client_losses", "Policy loss while training, on each node's own data.") }}
{{ plot("update_norm", "Size of the updates and of the change they made together.") }}
</div>
<h2>Time and bytes</h2>
{{ plot("time_by_phase", "Critical path: the server's own work and the slowest node's.") }}
<div class="columns">
{{ table(time) }}
{{ table(bytes) }}
</div>
<h2>Faults</h2>
{% if faults.rows %}
{{ table(faults) }}
{% else %}
<p>No node was missing, no update was rejected, nothing had to be resumed.</p>
{% endif %}
<div class="columns"><section><h2>Configuration</h2><p class=quiet>Bold: other than the default.</p>
{{ table(configuration) }}
</section><section><h2>Environment of the server</h2>
{% if environment.rows %}
{{ table(environment) }}
{% else %}
<p>It was not recorded.</p>
{% endif %}
</section></div>
</body></html>
""")
