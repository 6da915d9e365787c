// Opens the page of links in headless Chromium, waits for its plots, and says what is drawn.
// Usage: node plots.mjs PAGE_URL POINTS SECONDS [SCREENSHOT.png [WIDTH [dark]]]
// Waits until the rate is drawn with so many points, SECONDS at most. Prints one line of JSON: the device shown, per
// visible plot the points and the extent of each line, errors.
import { chromium } from "playwright-core";

const [page_url, points, seconds, screenshot, width, scheme] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});
try {
  const page = await browser.newPage({
    viewport: { width: Number(width ?? 1200), height: 900 }, colorScheme: scheme ?? "light",
  });
  const errors = [];
  page.on("pageerror", (e) => errors.push(String(e)));
  page.on("console", (m) => m.type() === "error" && errors.push(m.text()));
  await page.goto(page_url);
  await page.waitForFunction(
    (wanted) => {
      const lines = [...document.querySelectorAll('[data-plot="rate"] .curve.a')];
      return lines.reduce((sum, line) => sum + Number(line.dataset.points), 0) >= wanted;
    },
    Number(points), { timeout: Number(seconds) * 1000 });
  const seen = await page.evaluate(() => {
    const plots = {};
    for (const root of document.querySelectorAll("[data-plot]:not([hidden])")) {
      const lines = [];
      for (const node of root.querySelectorAll(".curve")) {
        const i = ["a", "b", "c"].findIndex((name) => node.classList.contains(name));
        // Only what has a path counts as drawn.
        lines[i] = (lines[i] ?? 0) + (node.getAttribute("d") ? Number(node.dataset.points) : 0);
      }
      plots[root.dataset.plot] = {
        points: lines, height: root.querySelector("svg").getBoundingClientRect().height,
        keys: [...root.querySelectorAll(".key")].map((key) => key.textContent),
      };
    }
    return { device: document.querySelector("#name").textContent, plots };
  });
  if (screenshot) await page.screenshot({ path: screenshot, fullPage: true });
  console.log(JSON.stringify({ ...seen, errors }));
} finally {
  await browser.close();
}
