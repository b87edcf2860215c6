import Chat from './chat';

export default function Page() {
  return (
    <main>
      <h1>LLM chat</h1>
      <Chat api={process.env.NEXT_PUBLIC_API_URL} />
    </main>
  );
}
