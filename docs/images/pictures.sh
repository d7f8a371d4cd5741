#!/usr/bin/env bash
# The README's pictures anew: the demo's curves (RUN is its folder) and the page of a report, light and dark, by Chromium.
# docs/images/pictures.sh RUN
set -euo pipefail
run=$(realpath "$1")
cd "$(dirname "$0")"
page=$(mktemp -d)
python -m tna_lightning.report ../../experiments/results/evidence/attempts/records.jsonl.gz -o "$page"
for scheme in light dark; do
	[ $scheme = dark ] && wanted=0 || wanted=1
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$page/profile" --window-size=1400,1150 \
		--blink-settings=preferredColorScheme=$wanted --screenshot="report_$scheme.png" "file://$page/index.html"
done
python draw_curves.py "$run"
