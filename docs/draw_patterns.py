"""Draws patterns.svg: who sees whom among 36 positions, in rows of 6."""

from pathlib import Path

T, stride, summary = 36, 6, 2
A = {
    "dense": (lambda i, j: True, lambda i, j: True),
    "strided": (lambda i, j: i - j <= stride, lambda i, j: (i - j) % stride == 0),
    "fixed": (lambda i, j: i // stride == j // stride, lambda i, j: j % stride >= stride - summary),
}
out = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 380" font-family="sans-serif" '
    'font-size="14">',
    "<title>Which positions attend to which: dense, strided and fixed</title>",
    '<rect width="960" height="380" fill="#ffffff"/>',
    "<defs>",
]
for name, color in {"a1": "#1f6fb4", "a2": "#f2a33a", "both": "#7a4a9e", "none": "#e4e4e4"}.items():
    out.append(f'<rect id="{name}" width="7" height="7" fill="{color}"/>')
out.append("</defs>")
words = {
    "dense": "dense: T * T",
    "strided": "strided: row before, column",
    "fixed": "fixed: own row, last c columns",
}
for n, (name, (a1, a2)) in enumerate(A.items()):
    out.append(f'<text x="{20 + 316 * n}" y="24">{words[name]}</text>')
    out.append(f'<g id="{name}" transform="translate({20 + 316 * n} 36)">')
    for i in range(T):
        for j in range(i + 1):
            one, two = a1(i, j), a2(i, j)
            kind = "both" if one and two else "a1" if one else "a2" if two else "none"
            out.append(f'<use href="#{kind}" x="{8 * j}" y="{8 * i}"/>')
    out.append("</g>")
x = 20
for kind, word in {
    "a1": "hop 1 (A1)",
    "a2": "hop 2 (A2)",
    "both": "both",
    "none": "not seen, but in reach of two hops",
}.items():
    out.append(f'<use href="#{kind}" x="{x}" y="342"/><text x="{x + 14}" y="350">{word}</text>')
    x += 45 + 8 * len(word)
what = "Each line is a position that attends, each column one that is seen; "
what += f"T = {T}, stride l = {stride}, summary c = {summary}"
out.append(f'<text x="20" y="372" fill="#555555">{what}</text>')
out.append("</svg>")
Path(__file__).with_name("patterns.svg").write_text("\n".join(out) + "\n")
