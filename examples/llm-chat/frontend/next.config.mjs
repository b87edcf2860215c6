/** @type {import('next').NextConfig} */
const nextConfig = {
  // A server with only the modules that it uses, for the runner stage.
  output: 'standalone',
  // No picture is resized, so the server does without the image library.
  images: { unoptimized: true },
  outputFileTracingExcludes: { '*': ['node_modules/sharp/**', 'node_modules/@img/**'] },
};

export default nextConfig;
