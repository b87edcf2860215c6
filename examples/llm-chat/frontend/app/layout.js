import './style.css';

export const metadata = { title: 'LLM chat', description: 'A chat with a local model' };

export default function RootLayout({ children }) {
  return (
    <html lang="en">
      <body>{children}</body>
    </html>
  );
}
