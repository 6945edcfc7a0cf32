// The search runs in a Worker, and a browser starts none for pages that are opened from disk. There, this class takes
// the place of Worker: it runs the same script in a hidden frame of the page. Served pages keep the browser's own. The
// theme's script knows by the second name that it runs in a frame.
if (location.protocol === "file:") {
  const load = (page, address) =>
    new Promise((resolve, reject) => {
      const script = page.createElement("script");
      Object.assign(script, { src: address, onload: resolve, onerror: reject });
      page.head.append(script);
    });

  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.ready = new Promise((resolve) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow;
          inside.importScripts = async (...addresses) => {
            for (const each of addresses) await load(inside.document, each);
          };
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          load(inside.document, address).then(() => resolve(inside));
        };
      });
      this.frame.srcdoc = "<!doctype html><title>search</title>";
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
