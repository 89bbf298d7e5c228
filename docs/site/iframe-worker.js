// Browsers start no Worker for a page from the disk, and the search of the site is one: here its script runs in a hidden frame.
if (location.protocol === "file:") {
  const message = (data) => new MessageEvent("message", { data: structuredClone(data) });
  window.Worker = class {
    constructor(url) {
      this.frame = document.body.appendChild(Object.assign(document.createElement("iframe"), { hidden: true }));
      const inside = this.frame.contentWindow, script = inside.document.createElement("script");
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.(message(data)));
      this.loaded = new Promise((done) => Object.assign(script, { src: url, onload: done }));
      inside.document.head.append(script);
    }
    async postMessage(data) {
      const copy = message(data);
      await this.loaded;
      this.frame.contentWindow?.dispatchEvent(copy);
    }
    terminate() {
      this.frame.remove();
    }
  };
}
