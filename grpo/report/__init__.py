"""`python -m grpo.report runs/A [runs/B ...]`: run folders -> one HTML page that opens from disk without a network.

read.py reads the folders, charts.py defines the charts and their healthy ranges, page.py fills
page.html.j2 with page.css and three scripts: text.js, charts.js and browser.js. What a model wrote reaches the page
only as escaped JSON and is shown as text.
"""
