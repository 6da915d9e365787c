// Opens the page in headless Chromium, clicks a stream as a person would, and says what the player did.
// Usage: node play.mjs PAGE_URL STREAM live|recording SECONDS [SCREENSHOT.png]
// Prints one line of JSON: currentTime before and after, decoded frames, latency behind live, errors.
import { chromium } from "playwright-core";

const [page_url, stream, mode, seconds, screenshot] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
  ],
});
try {
  const page = await browser.newPage({ viewport: { width: 900, height: 900 } });
  const errors = [];
  page.on("pageerror", (e) => errors.push(String(e)));
  page.on("console", (m) => m.type() === "error" && errors.push(m.text()));
  await page.goto(page_url);
  await page.locator(`[data-stream="${stream}"] [data-play="${mode}"]`).first().click({ timeout: 15000 });
  await page.waitForFunction(
    () => { const v = document.querySelector("#player"); return v && v.readyState >= 2 && v.currentTime > 0; },
    null, { timeout: 30000 });
  const look = () => page.evaluate(() => {
    const v = document.querySelector("#player");
    const hls = window.penstock?.player;
    return {
      time: v.currentTime,
      frames: v.getVideoPlaybackQuality().totalVideoFrames,
      latency: hls && Number.isFinite(hls.latency) ? hls.latency : null,
      target: hls?.levels?.[0]?.details?.targetduration ?? null,
      fatal: window.penstock?.fatal ?? null,
      paused: v.paused, ended: v.ended, error: v.error?.message ?? null,
    };
  });
  const before = await look();
  await page.waitForTimeout(Number(seconds) * 1000);
  const after = await look();
  if (screenshot) await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ before, after, errors }));
} finally {
  await browser.close();
}
