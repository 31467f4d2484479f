// A conversation is a tree of messages: an edited question and a regenerated answer are branches. No drawing here.

export class Tree {
  constructor(messages = []) {
    this.messages = new Map();
    this.children = new Map();
    for (const message of messages) this.put(message);
  }

  put(message) {
    if (!this.messages.has(message.id)) {
      const siblings = this.children.get(message.parent) ?? [];
      siblings.push(message.id);
      this.children.set(message.parent, siblings);
    }
    this.messages.set(message.id, message);
  }

  get(id) {
    return this.messages.get(id);
  }

  siblings(id) {
    return this.children.get(this.get(id).parent) ?? [];
  }

  // From the root to a message.
  path(id) {
    const path = [];
    for (let at = this.get(id); at; at = this.get(at.parent)) path.unshift(at);
    return path;
  }

  // Downwards by the newest branch each time.
  leaf(from = null) {
    let at = from;
    for (;;) {
      const children = this.children.get(at) ?? [];
      if (!children.length) return at;
      at = children[children.length - 1];
    }
  }
}
