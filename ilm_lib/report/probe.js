// What is wrong with the page as it is shown now: a list of sentences. `check.py` runs this in every page and look.
(async () => {
  const said = [], width = document.documentElement.clientWidth;
  const name = e => e.tagName.toLowerCase() + (e.className && e.className.split ? '.' + e.className.split(' ')[0] : '');
  if (document.documentElement.scrollWidth > width + 1) {
    // What stands in a box that scrolls or clips does not widen the page.
    const clipped = e => { for (e = e.parentElement; e && e !== document.body; e = e.parentElement)
      if (getComputedStyle(e).overflowX !== 'visible') return true; return false };
    const wide = [...document.querySelectorAll('body *')]
      .find(e => e.getBoundingClientRect().right > width + 1 && !clipped(e));
    said.push('page scrolls sideways' + (wide ? ', because of ' + name(wide) : ''));
  }
  if (matchMedia('print').matches) {
    document.querySelectorAll('table').forEach((t, i) => {
      if (t.getBoundingClientRect().right > width + 1) said.push('table ' + (i + 1) + ' loses columns') });
    if ([...document.querySelectorAll('tr')].some(r => getComputedStyle(r).breakInside !== 'avoid'))
      said.push('rows of tables may be split');
    if ([...document.querySelectorAll('details > :not(summary)')].some(e => !e.checkVisibility()))
      said.push('what is folded is lost');
  }
  for (const i of document.images) {
    i.loading = 'eager';
    try { await i.decode() } catch { said.push('broken image: ' + i.alt) }
  }
  // Contrast of every text with what is behind it, by the WCAG's formula.
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const rgba = s => (s.match(/[\d.]+/g) || []).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > .5) return c.slice(0, 3) } return [255, 255, 255] };
  const faint = new Set();
  for (const e of document.querySelectorAll('main *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    if (e.tagName === 'SCRIPT' || !e.checkVisibility()) continue;
    const a = light(rgba(getComputedStyle(e).color).slice(0, 3)), b = light(behind(e));
    if ((Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 3.5) faint.add(name(e));
  }
  if (faint.size) said.push('text hard to read: ' + [...faint].slice(0, 4).join(', '));
  return said;
})()
