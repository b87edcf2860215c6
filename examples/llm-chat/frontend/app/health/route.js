// The health check of the container: the server answers, without asking the backend.
export const dynamic = 'force-static';

export function GET() {
  return Response.json({ status: 'ok', api: process.env.NEXT_PUBLIC_API_URL });
}
