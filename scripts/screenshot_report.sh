#!/bin/sh
# Take pictures of a report in headless Chromium: wide and narrow, light and dark.
#   scripts/screenshot_report.sh outputs/quadrants_embedded/report.html docs/images/report.png   the README's picture
#   scripts/screenshot_report.sh outputs/quadrants_embedded/report.html FOLDER                   all four, whole pages
set -eu

page=$(realpath "$1")
out=$2
browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT

shoot() { # FILE WIDTH HEIGHT DARK
    blink="preferredColorScheme=$4" # Blink's setting: 0 dark, 1 light
    "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
        --disable-component-update --disable-sync --hide-scrollbars --blink-settings="$blink" \
        --user-data-dir="$profile" --screenshot="$1" --window-size="$2,$3" "file://$page" >/dev/null 2>&1
    echo "$1"
}

case $out in
*.png)
    mkdir -p "$(dirname "$out")"
    shoot "$out" 1440 2330 1
    ;;
*)
    mkdir -p "$out"
    shoot "$out/wide_light.png" 1440 17000 1
    shoot "$out/wide_dark.png" 1440 17000 0
    shoot "$out/narrow_light.png" 400 33500 1
    shoot "$out/narrow_dark.png" 400 33500 0
    ;;
esac
