// Three small things, none of which a page needs: live content, times in the reader's time zone, and the word
// that says whether the page is live.
"use strict";

function localTimes(root) {
  for (const each of root.querySelectorAll("time[datetime]")) {
    const at = new Date(each.dateTime);
    const pad = (n) => String(n).padStart(2, "0");
    const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
    const text = `${day} ${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
    if (each.textContent !== text) {
      each.title = each.textContent;
      each.textContent = text;
    }
  }
}

// Make `old` like `fresh` in place: elements stay where they are of the same kind, so focus, open details and
// what somebody is typing stay too.
function become(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.localName === "details")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, index) => {
    const there = before[index];
    if (!there) {
      old.appendChild(node);
    } else if (there.nodeType !== node.nodeType || there.nodeName !== node.nodeName) {
      old.replaceChild(node, there);
    } else if (node.nodeType === Node.ELEMENT_NODE) {
      become(there, node);
    } else if (there.nodeValue !== node.nodeValue) {
      there.nodeValue = node.nodeValue;
    }
  });
  before.slice(after.length).forEach((node) => node.remove());
}

function watch(live, pulse) {
  const say = (text, tone) => {
    if (pulse.textContent !== text) pulse.textContent = text;
    pulse.dataset.tone = tone;
  };
  const source = new EventSource(pulse.dataset.stream);
  source.addEventListener("open", () => say("live", "good"));
  source.addEventListener("page", (event) => {
    const fresh = live.cloneNode(false);
    fresh.innerHTML = event.data;
    localTimes(fresh);
    become(live, fresh);
    say("live", "good");
  });
  source.addEventListener("over", () => {
    source.close();
    say("your session is over: load the page again", "bad");
  });
  source.addEventListener("error", () => say("not live: the agent does not answer", "bad"));
  addEventListener("pagehide", () => source.close());
}

localTimes(document);
const live = document.querySelector("[data-live]");
const pulse = document.getElementById("pulse");
if (live && pulse) watch(live, pulse);
