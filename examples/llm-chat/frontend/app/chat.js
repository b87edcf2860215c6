'use client';

import { useState } from 'react';

export default function Chat({ api }) {
  const [lines, setLines] = useState([]);
  const [message, setMessage] = useState('');

  const add = (who, text) => setLines((before) => [...before, { who, text }]);

  async function send(event) {
    event.preventDefault();
    const text = message.trim();
    if (!text) return;
    setMessage('');
    add('you', text);
    try {
      const response = await fetch(`${api}/api/chat`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ message: text }),
      });
      if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
      const answer = await response.json();
      add(answer.model, answer.reply);
    } catch (error) {
      add('error', String(error.message ?? error));
    }
  }

  return (
    <>
      <ol>
        {lines.map((line, index) => (
          <li key={index}>
            <b>{line.who}</b> {line.text}
          </li>
        ))}
      </ol>
      <form onSubmit={send}>
        <input
          aria-label="Message"
          autoFocus
          maxLength={4000}
          onChange={(event) => setMessage(event.target.value)}
          value={message}
        />
        <button type="submit">Send</button>
      </form>
    </>
  );
}
