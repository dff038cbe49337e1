# Homebrew formula of mlxkv; packaging/formula.py fills in version and checksum for each release.
class Mlxkv < Formula
  desc "Local chat with a KV cache that is allocated once and survives a restart"
  homepage "https://mlxkv.github.io/mlxkv/"
  url "https://github.com/mlxkv/mlxkv/releases/download/v@VERSION@/mlxkv-@VERSION@.tar.gz"
  sha256 "@SHA256@"
  license "MIT"

  depends_on "python@3.13"

  on_macos do
    depends_on arch: :arm64
    depends_on macos: :sonoma # MLX has wheels for macOS 14 and newer
  end

  # Extension modules in wheels have names with @rpath, often without space for longer ones.
  preserve_rpath

  def install
    system "python3.13", "-m", "venv", libexec
    # Wheels in the exact versions that the release was tested with, those of pip and of the build backend too, which
    # pip older than 25.3 cannot constrain; MLX from source needs all of Xcode.
    pip = [libexec/"bin/python", "-m", "pip", "install", "--only-binary", ":all:",
           "--constraint", buildpath/"constraints.txt"]
    system(*pip, "--upgrade", "pip")
    system(*pip, "--build-constraint", buildpath/"constraints.txt", buildpath)
    bin.install_symlink libexec/"bin/mlxkv"
  end

  test do
    ENV["MLXKV_HOME"] = testpath/"mlxkv"
    assert_equal "mlxkv #{version}", shell_output("#{bin}/mlxkv --version").chomp
    assert_match "keys and values", shell_output("#{bin}/mlxkv -m tutor -p 'What is a KV cache?'")
    assert_match "What is a KV cache?", shell_output("#{bin}/mlxkv chats ls --all")
  end
end
